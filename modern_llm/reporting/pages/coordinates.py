"""Sizes of activations over widths as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw_coordinates(widths: Sequence[int], sizes: Sequence[Sequence[dict[str, float]]], path: Path) -> Path:
    """A panel for each activation: its root mean square over the widths, a line for each step, early ones light.

    Args:
        widths: of the models.
        sizes: by width and step, then by name.
        path: picture to write; the ending says the format.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    names = list(sizes[0][0])
    figure = Figure(figsize=(3.2 * len(names), 3.4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    steps = len(sizes[0])
    for axes, name in zip(panels, names, strict=True):
        for step in range(steps):
            colour = colormaps["viridis"](1 - step / max(steps - 1, 1))
            values = [of_width[step][name] for of_width in sizes]
            axes.plot(widths, values, color=colour, marker="o", markersize=3, linewidth=1)
        axes.set(xscale="log", yscale="log", title=name, xlabel="width")
        axes.set_xticks(list(widths), [str(width) for width in widths], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    panels[0].set(ylabel=f"root mean square, steps 0 (light) to {steps - 1}")
    figure.savefig(path, dpi=120)
    return path
