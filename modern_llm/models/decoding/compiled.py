"""Steps of one token as one compiled graph, which a GPU replays without waiting for Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache as remembered
from typing import Any

import torch
from torch import Tensor

from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.fixed_cache import FixedCache

_CAPACITIES = 256  # tokens: caches are as large as a multiple of it, so that texts of any length share a few graphs


def fixed_capacity(max_tokens: int) -> int:
    """Room of a cache for texts of `max_tokens` tokens."""
    return -(-max_tokens // _CAPACITIES) * _CAPACITIES


def _step(model: Any, ids: Tensor, cache: FixedCache) -> Tensor:
    """(B, 1, d) hidden states of ids (B, 1)."""
    return model.hidden_states(ids, cache=cache).hidden


@remembered
def compiled_step() -> Callable[[Any, Tensor, FixedCache], Tensor]:
    """`_step` as one graph; with `reduce-overhead`, a CUDA graph."""
    return torch.compile(_step, mode="reduce-overhead", fullgraph=True)


def holds_what_is_kept(cache: Any) -> bool:
    """Whether the first tokens that a ring never evicts have been read."""
    return all(part.length >= part.kept for part in getattr(cache, "parts", ()) if part.ring)


class CompiledSteps:
    """One-token steps of a decoder of ours on a cache that holds its prompts.

    Args:
        model: in evaluation mode.
        cache: of fixed capacity; it is behind until `release`.
        max_tokens: that texts will have.

    Raises:
        ValueError: the model is no decoder of ours, has experts, or parts of it look back by other means than keys and
            values.
    """

    def __init__(self, model: Any, cache: Any, max_tokens: int) -> None:
        if not isinstance(cache, DecoderCache) or cache.last or model.looks_back or model.config.moe is not None:
            raise ValueError(
                f"sampling.compile=true: {type(model).__name__} takes no compiled steps here. Decoders of this project "
                "do that have no experts and no parts that look back; use false."
            )
        self.model, self.steps = model, 0
        for view in model.distinct_views:  # tables of angles must not grow inside a graph
            model.rotary.of(view).at(torch.zeros(1, 1, dtype=torch.long, device=model.head.weight.device), max_tokens)
        self.cache = FixedCache(cache)
        for tensor in self.cache.tensors():
            torch._dynamo.mark_static_address(tensor)  # CUDA graphs read and write it where it lies

    def __call__(self, ids: Tensor) -> Tensor:
        """(B, d) hidden states of ids (B, 1)."""
        self.steps += 1
        return compiled_step()(self.model, ids, self.cache)[:, -1].clone()  # the graph's own output is overwritten

    def release(self) -> None:
        """Let the cache know what the steps have added to it."""
        self.cache.release(self.steps)
        self.steps = 0
