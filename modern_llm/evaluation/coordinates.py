"""How large activations are at each width, over the first steps: the coordinate check of Yang et al. 2022 (arXiv
2203.03466, appendix D.1)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from modern_llm.models.transformer import ModernDecoderLM


@contextmanager
def watched(model: ModernDecoderLM) -> Iterator[dict[str, float]]:
    """Within it each forward pass fills a dict: the root mean square of what embedding, blocks, branches and head give,
    branches and blocks on average over the layers."""
    found: dict[str, list[float]] = {}
    sizes: dict[str, float] = {}

    def watch(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            x: Tensor = output[0] if isinstance(output, tuple) else output
            found.setdefault(name, []).append(float(x.detach().float().square().mean().sqrt()))
            sizes[name] = sum(found[name]) / len(found[name])

        return hook

    def begin(*_: Any) -> None:
        found.clear()
        sizes.clear()

    def logits(module: Any, inputs: Any, output: Any) -> None:
        with torch.no_grad():
            sizes["logits"] = float(model.output_head.logits(output.detach()).square().mean().sqrt())

    blocks: Any = model.blocks
    handles = [
        model.embedding.register_forward_pre_hook(begin),
        model.embedding.register_forward_hook(watch("embedding")),
        model.final_norm.register_forward_hook(logits),
    ]
    for block in blocks:
        handles.append(block.register_forward_hook(watch("stream behind a block")))
        for branch, name in (("attention", "attention"), ("ffn", "feed-forward layer")):
            if hasattr(block, branch):  # what stands in the place of a block has none
                handles.append(getattr(block, branch).register_forward_hook(watch(name)))
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()


def slopes(widths: Sequence[int], sizes: Sequence[dict[str, float]]) -> dict[str, float]:
    """For each activation, the slope of log size over log width, by least squares: 0 where the size does not depend on
    the width, 0.5 where it grows as its root, 1 as the width itself.

    Args:
        widths: at least two.
        sizes: of each width, by name.
    """
    x = [math.log(width) for width in widths]
    mean = sum(x) / len(x)
    spread = sum((value - mean) ** 2 for value in x)
    found = {}
    for name in sizes[0]:
        y = [math.log(max(size[name], 1e-12)) for size in sizes]
        found[name] = sum((a - mean) * b for a, b in zip(x, y, strict=True)) / spread
    return found
