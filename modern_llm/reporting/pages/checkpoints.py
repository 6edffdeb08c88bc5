"""Losses of checkpoints, and what else is known of them, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_AXES = {"step": "optimiser steps", "tokens": "tokens read", "flops": "training operations (FLOPs)"}
_FIGURES = {"loss": "loss (nats per token)", "blimp_accuracy": "BLiMP accuracy"}
_NAMED_RUNS = 12  # a longer legend would cover the curves


def draw_checkpoints(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Loss over steps, tokens and operations, one curve a run; below, where it was measured, accuracy on BLiMP.

    Args:
        rows: `run`, `loss`, `step`, `tokens`, `flops` and perhaps `blimp_accuracy` of each checkpoint; None where
            unknown.
        path: picture to write; the ending says the format.
    """
    from matplotlib.figure import Figure

    figures = [name for name in _FIGURES if any(row.get(name) is not None for row in rows)]
    figure = Figure(figsize=(12, 4 * len(figures)), layout="constrained")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    panels = figure.subplots(len(figures), len(_AXES), sharex="col", sharey="row", squeeze=False)
    for line, name in zip(panels, figures, strict=True):
        for axes, (key, label) in zip(line, _AXES.items(), strict=True):
            for number, run in enumerate(runs):
                label_of_run = str(run).replace("$", r"\$")  # $ would begin a formula
                mine = [row for row in rows if row["run"] == run and None not in (row[key], row.get(name))]
                points = sorted((row[key], row[name]) for row in mine)
                axes.plot([x for x, _ in points], [y for _, y in points], color=f"C{number % 10}", marker="o",
                          markersize=3, linewidth=1, label=label_of_run)  # fmt: skip
            axes.set(xlabel=label if name == figures[-1] else "", ylabel=_FIGURES[name] if key == "step" else "")
            axes.grid(alpha=0.3)
    if 1 < len(runs) <= _NAMED_RUNS:
        figure.legend(*axes.get_legend_handles_labels(), fontsize="small", frameon=False, loc="outside lower center",
                      ncols=2)  # fmt: skip
    figure.savefig(path, dpi=120)
    return path
