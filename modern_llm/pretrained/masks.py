"""The masks of `transformers`, taken as they are given, and attention to branches without one.

Before each pass it looks whether a mask hides nothing, and whether positions begin anew inside a row: a GPU has to be
waited for, since both lie there. Here a mask is given where it hides something alone, and positions begin anew where a
mask says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from modern_llm.models.attention.branching import Branches


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
def attention_by(branches: Branches | None, config: Any) -> Iterator[None]:
    """Within it layers that call torch's fused attention by way of `transformers`, without a window of their own,
    attend to branches by themselves; the others go by the mask.

    Args:
        branches: None: all go by the mask.
        config: of the model.
    """
    if branches is None or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    theirs = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *rest: Any, **given: Any
    ) -> tuple[Tensor, None]:
        window = getattr(module, "sliding_window", None)
        known = given.keys() <= {"dropout", "scaling", "is_causal", "position_ids", "use_cache", "sliding_window"}
        plain = not rest and known and window is None and given.get("sliding_window") is None
        if not plain or query.shape[2] != key.shape[2] or key.shape[-1] != value.shape[-1]:
            return theirs(module, query, key, value, attention_mask, *rest, **given)
        scale = given.get("scaling")
        q, k, v = (t.transpose(1, 2) for t in (query, key, value))  # (B, T, H, D)
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return branches.attend(q, k, v, scale, given.get("dropout") or 0.0), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS["sdpa"] = theirs
