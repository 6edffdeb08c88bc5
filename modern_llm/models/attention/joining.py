"""Texts of several caches in one: every text at the end of the same number of tokens, with padding in front."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def at_the_end(real: Tensor, length: int) -> Tensor:
    """(n, length) where the tokens stand that each text is to have there: its real ones last, in their order, and
    padding in front of them, -1 where there is no token at all.

    Args:
        real: (n, m) False at padding.
        length: at least the number of real tokens of each text.
    """
    order = real.long().sort(dim=1, stable=True).indices  # padding first
    return F.pad(order, (length - order.shape[1], 0), value=-1)  # or cuts in front


def joined_marks(marks: Sequence[Tensor], orders: Sequence[Tensor], capacity: int) -> Tensor:
    """(n, capacity) of marks (n_i, m_i) of several caches at places `at_the_end`; 0 where there is none."""
    taken = [m.gather(1, o.clamp(min=0)).masked_fill(o < 0, 0) for m, o in zip(marks, orders, strict=True)]
    return F.pad(torch.cat(taken), (0, capacity - orders[0].shape[1]))


def joined_states(states: Sequence[Tensor], orders: Sequence[Tensor], capacity: int) -> Tensor:
    """(n, H, capacity, D) of keys or values (n_i, H, m_i, D), likewise; anything finite where there is none."""
    _, H, _, D = states[0].shape
    joined = states[0].new_empty(sum(map(len, orders)), H, capacity, D)
    row = 0
    for held, order in zip(states, orders, strict=True):
        index = order.clamp(min=0)[:, None, :, None].expand(-1, H, -1, D)
        joined[row : row + len(order), :, : order.shape[1]] = held.gather(2, index)
        row += len(order)
    return joined
