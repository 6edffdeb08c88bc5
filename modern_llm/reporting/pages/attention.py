"""Attention as pictures, and as a figure of a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modern_llm.reporting.pages.blocks import embedded

_MOST_MAPS = 400  # a picture of more cannot be read


def draw_maps(weights: Any, path: Path) -> Path:
    """One heat map a head, layers below each other.

    Args:
        weights: (L, H, T, S + T).
        path: picture to write.
    """
    from matplotlib.figure import Figure

    layers, heads = weights.shape[:2]
    layers = max(min(layers, _MOST_MAPS // heads), 1)
    figure = Figure(figsize=(1.1 * heads + 0.6, 1.1 * layers + 0.5), layout="constrained")
    grid = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axes = grid[layer][head]
            # Small weights are many and are what differs from head to head: the square root shows them.
            axes.imshow(weights[layer, head] ** 0.5, vmin=0, vmax=1, cmap="magma", aspect="auto")
            axes.set(xticks=[], yticks=[])
            if head == 0:
                axes.set_ylabel(f"layer {layer}", fontsize="x-small")
            if layer == 0:
                axes.set_title(f"head {head}", fontsize="x-small")
    figure.savefig(path, dpi=90)
    return path


def draw_heads(mass: Any, entropy: Any, path: Path) -> Path:
    """Sink mass and entropy of every head, (L, H) each, beside each other."""
    from matplotlib.figure import Figure

    layers, heads = mass.shape
    figure = Figure(figsize=(2 * (0.35 * heads + 2), 0.3 * layers + 1.4), layout="constrained")
    parts = zip(figure.subplots(1, 2), (mass, entropy), ("sink mass", "entropy (nats)"), (1.0, None), strict=True)
    for axes, values, title, top in parts:
        shown = axes.imshow(values, vmin=0, vmax=top, cmap="viridis", aspect="auto")
        axes.set(title=title, xlabel="head", ylabel="layer", xticks=range(heads), yticks=range(layers))
        axes.tick_params(labelsize="x-small")
        figure.colorbar(shown, ax=axes)
    figure.savefig(path, dpi=110)
    return path


def attention_figure(weights: Any, labels: Sequence[str], n_sinks: int) -> str:
    """A place for the page's script to show what a token attends to, and the weights, in 255 steps each.

    Args:
        weights: (L, H, T, S + T).
        labels: of the T tokens.
        n_sinks: S.
    """
    steps = (weights * 255).round().astype("uint8")
    data = {
        "labels": list(labels),
        "sinks": n_sinks,
        "layers": weights.shape[0],
        "heads": weights.shape[1],
        "weights": base64.b64encode(steps.tobytes()).decode(),
    }
    return (
        '<figure class="attention"><div class="controls"></div><div class="tokens"></div><div class="map"><canvas>'
        '</canvas></div><figcaption class="note" aria-live="polite"></figcaption></figure>'
        f"{embedded('attention-data', data)}"
        '<noscript><p class="note">The figure needs the page\'s script, which is switched off.</p></noscript>'
    )
