"""Loss by position as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STYLES = {"full": "-", "window": "--", "streaming": "-.", "own": (0, (6, 1)), "recomputed": ":"}
_REFERENCE = "recomputed"


def draw_long_context(curves: dict[str, list[dict[str, Any]]], length: int, factors: Sequence[int], path: Path) -> Path:
    """One curve per model and policy over positions, with the trained length and its multiples marked. Below, how much
    each is above `recomputed`, where that was measured: some positions have harder text, for all curves alike.

    Args:
        curves: `<model>: <policy>` -> buckets with `from`, `to` and `loss`.
        length: tokens that count as 1x.
        factors: multiples that are marked.
        path: picture to write; the ending says the format.
    """
    from matplotlib.figure import Figure

    compared = any(label.endswith(f": {_REFERENCE}") for label in curves) and len(curves) > 1
    figure = Figure(figsize=(10, 8.5 if compared else 5), layout="constrained")
    panels = figure.subplots(2 if compared else 1, 1, sharex=True, squeeze=False)[:, 0]
    models = list(dict.fromkeys(label.rpartition(": ")[0] for label in curves))
    for number, (label, buckets) in enumerate(curves.items()):
        model, _, policy = label.rpartition(": ")
        colour = f"C{(models.index(model) if len(models) > 1 else number) % 10}"
        name = (label if len(models) > 1 else policy).replace("$", r"\$")  # $ would begin a formula
        line: dict[str, Any] = {"color": colour, "linestyle": _STYLES[policy], "linewidth": 1.5}
        middles = [(bucket["from"] + bucket["to"]) / 2 for bucket in buckets]
        panels[0].plot(middles, [bucket["loss"] for bucket in buckets], label=name, **line)
        reference = curves.get(f"{model}: {_REFERENCE}")
        if reference is not None and policy != _REFERENCE:
            gaps = [bucket["loss"] - other["loss"] for bucket, other in zip(buckets, reference, strict=True)]
            panels[1].plot(middles, gaps, **line)
    for axes in panels:
        for factor in factors:
            axes.axvline(length * factor, color="grey", linewidth=0.6, alpha=0.6)
        axes.grid(alpha=0.25)
    for factor in factors:
        panels[0].annotate(f"{factor}x", (length * factor, 1), xycoords=("data", "axes fraction"), xytext=(-3, -11),
                           textcoords="offset points", ha="right", fontsize="small", color="grey")  # fmt: skip
    panels[0].set(xscale="log", ylabel="loss (nats per token)")
    panels[-1].set(xlabel=f"position (tokens; 1x = {length})")
    if compared:
        panels[1].set(ylabel="above reading the context anew (nats per token)")
    panels[0].legend(fontsize="small", frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=120)
    return path
