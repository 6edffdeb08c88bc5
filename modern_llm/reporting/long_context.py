"""Loss by position as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STYLES = {"full": "-", "window": "--", "streaming": "-.", "own": "-", "recomputed": ":"}


def draw_long_context(curves: dict[str, list[dict[str, Any]]], length: int, factors: Sequence[int], path: Path) -> Path:
    """One curve per model and policy over positions, with the trained length and its multiples marked.

    Args:
        curves: `<model>: <policy>` -> buckets with `from`, `to` and `loss`.
        length: tokens that count as 1x.
        factors: multiples that are marked.
        path: picture to write; the ending says the format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots()
    models = list(dict.fromkeys(label.rpartition(": ")[0] for label in curves))
    several = len(models) > 1
    for number, (label, buckets) in enumerate(curves.items()):
        model, _, policy = label.rpartition(": ")
        colour = f"C{(models.index(model) if several else number) % 10}"
        middles = [(bucket["from"] + bucket["to"]) / 2 for bucket in buckets]
        axes.plot(middles, [bucket["loss"] for bucket in buckets], _STYLES[policy], color=colour, linewidth=1.5,
                  label=(label if several else policy).replace("$", r"\$"))  # fmt: skip
    for factor in factors:
        axes.axvline(length * factor, color="grey", linewidth=0.6, alpha=0.6)
        axes.annotate(f"{factor}x", (length * factor, 1), xycoords=("data", "axes fraction"), xytext=(-3, -11),
                      textcoords="offset points", ha="right", fontsize="small", color="grey")  # fmt: skip
    axes.set(xscale="log", xlabel=f"position (tokens; 1x = {length})", ylabel="loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    return path
