"""The masks of `transformers`, taken as they are given.

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
