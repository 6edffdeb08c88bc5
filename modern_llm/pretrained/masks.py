"""The masks of `transformers`, taken as they are given, and attention without them to branches and to trunks.

Before each pass it looks whether a mask hides nothing, and whether positions begin anew inside a row: a GPU has to be
waited for, since both lie there. Here a mask is given where it hides something alone, and positions begin anew where a
mask says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modern_llm.models.attention.branching import Branches
from modern_llm.models.kernels import additive_mask, fused_attention

if TYPE_CHECKING:
    from modern_llm.pretrained.kv_cache import HuggingFaceCache

# What is given to attention without a meaning of its own here.
_PLAIN = frozenset({"dropout", "scaling", "is_causal", "position_ids", "use_cache", "sliding_window"})


def _not_packed(position_ids: Any) -> None:
    """What is found where every row is one text."""


def _unread(looks: Any) -> Any:
    @wraps(looks)
    def hides_nothing(padding_mask: Any, *rest: Any, **more: Any) -> bool:
        return padding_mask is None and looks(padding_mask, *rest, **more)

    return hides_nothing


@contextmanager
def masks_as_given(device: torch.device) -> Iterator[None]:
    """Within it no pass on such a device reads a mask or positions on the host."""
    from transformers import masking_utils

    places: dict[str, Any] = {"find_packed_sequence_indices": lambda looks: _not_packed}
    places |= dict.fromkeys(("_ignore_causal_mask_sdpa", "_ignore_bidirectional_mask_sdpa"), _unread)
    theirs = {name: getattr(masking_utils, name) for name in places if hasattr(masking_utils, name)}
    if device.type == "cpu":
        theirs = {}
    try:
        for name, looks in theirs.items():
            setattr(masking_utils, name, places[name](looks))
        yield
    finally:
        for name, looks in theirs.items():
            setattr(masking_utils, name, looks)


@contextmanager
def attention_by(branches: Branches | None, cache: HuggingFaceCache | None, config: Any) -> Iterator[None]:
    """Within it layers that call torch's fused attention by way of `transformers`, without a window of their own,
    attend to branches, to trunks and, for one token of each text, to a cache by themselves; the others go by the mask.

    Args:
        branches: None: there are none.
        cache: that the pass continues. It is told which layers do so.
        config: of the model.
    """
    if (branches is None and cache is None) or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    theirs = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *rest: Any, **given: Any
    ) -> tuple[Tensor, None]:
        layer, kinds = getattr(module, "layer_idx", None), getattr(config, "layer_types", None)
        sees_all = kinds is None or layer is None or kinds[layer] == "full_attention"
        window = getattr(module, "sliding_window", None) or given.get("sliding_window")
        plain = not rest and given.keys() <= _PLAIN and sees_all and window is None
        plain = plain and key.shape[-1] == value.shape[-1]
        scale = given.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))  # (B, T, H, D)
        if plain and cache is not None and layer is not None:
            cache.attended.add(layer)
        if cache is not None and cache.trunks is not None:
            assert layer is not None  # or the cache would not be shared
            # The trunks know what is padded in them.
            return cache.trunks.attend(layer, q, k, v, cache.mask_behind_trunks(q.dtype), scale), None
        if plain and branches is not None and q.shape[1] == k.shape[1]:
            return branches.attend(q, k, v, scale, given.get("dropout") or 0.0), None
        by_key = attention_mask is None or attention_mask.shape[1:3] == (1, 1)
        if plain and cache is not None and q.shape[1] == 1 and by_key and not given.get("dropout"):
            hides = attention_mask is not None and attention_mask.dtype == torch.bool
            mask = additive_mask(attention_mask, q.dtype) if hides else attention_mask
            return fused_attention(q, k, v, mask, False, scale), None
        return theirs(module, query, key, value, attention_mask, *rest, **given)

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
