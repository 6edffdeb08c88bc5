"""Losses of checkpoints as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_AXES = {"step": "optimiser steps", "tokens": "tokens read", "flops": "training operations (FLOPs)"}
_NAMED_RUNS = 12  # a longer legend would cover the curves


def draw_checkpoints(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Loss over steps, tokens and operations, one curve a run.

    Args:
        rows: `run`, `loss`, `step`, `tokens` and `flops` of each checkpoint; None where unknown.
        path: picture to write; the ending says the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    runs = list(dict.fromkeys(row["run"] for row in rows))
    for axes, (key, label) in zip(figure.subplots(1, 3, sharey=True), _AXES.items(), strict=True):
        for number, run in enumerate(runs):
            points = sorted((row[key], row["loss"]) for row in rows if row["run"] == run and row[key] is not None)
            name = str(run).replace("$", r"\$")  # $ would begin a formula
            axes.plot([x for x, _ in points], [y for _, y in points], color=f"C{number % 10}", marker="o", markersize=3,
                      linewidth=1, label=name)  # fmt: skip
        axes.set(xlabel=label, ylabel="loss (nats per token)" if key == "step" else "")
        axes.grid(alpha=0.3)
    if 1 < len(runs) <= _NAMED_RUNS:
        figure.legend(*axes.get_legend_handles_labels(), fontsize="small", frameon=False, loc="outside lower center",
                      ncols=2)  # fmt: skip
    figure.savefig(path, dpi=120)
    return path
