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
    some = [F.pad(m, (0, 1)) for m in marks]  # of none at all nothing could be taken
    taken = [m.gather(1, o.clamp(min=0)).masked_fill(o < 0, 0) for m, o in zip(some, orders, strict=True)]
    return F.pad(torch.cat(taken), (0, capacity - orders[0].shape[1]))


def joined_states(
    states: Sequence[Tensor], orders: Sequence[Tensor], capacity: int, rows: Tensor | None = None
) -> Tensor:
    """(n, H, capacity, D) of keys or values (m_i, H, c_i, D), likewise; where there is none, the first of the cache,
    which is finite. Of the first cache these rows (n_0,) alone are taken, each as often as it is named; None: all."""
    _, H, _, D = states[0].shape
    joined = states[0].new_empty(sum(map(len, orders)), H, capacity, D)
    first = 0
    for number, (held, order) in enumerate(zip(states, orders, strict=True)):
        taken = torch.arange(len(order), device=order.device) if number or rows is None else rows
        heads = taken[:, None] * H + torch.arange(H, device=order.device)  # (n_i, H) among all heads of all texts
        places = heads[:, :, None] * held.shape[2] + order.clamp(min=0)[:, None]  # (n_i, H, length)
        # Whole tokens of a head are copied: six times as fast on a CPU as gathering number by number.
        found = held.reshape(-1, D).index_select(0, places.flatten()).view(*places.shape, D)
        joined[first : first + len(order), :, : order.shape[1]] = found
        first += len(order)
    return joined
