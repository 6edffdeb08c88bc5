"""What stood one token earlier, in packed documents, branches, padded texts and behind a cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.attention.kv_cache import DecoderCache


class Predecessors:
    """The token in front of each token of one pass: the last real one before it in its own document and, for a branch,
    in itself or in its trunk.

    Args:
        attention_mask, document_ids, branch_ids: (B, T), as in `ModernDecoderLM.hidden_states`.
        cache: what the tokens continue; it remembers the last real token of each text for the next pass.
    """

    def __init__(
        self,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> None:
        self.cache = cache
        self.real = None if attention_mask is None else attention_mask.bool()
        self.index: Tensor | None = None  # (B, T) where the predecessor stands; -1: in front of this pass
        if self.real is not None or document_ids is not None or branch_ids is not None:
            given = next(t for t in (attention_mask, document_ids, branch_ids) if t is not None)
            self.index = _last_before(given, self.real, document_ids, branch_ids)

    def of(self, name: str, x: Tensor) -> Tensor:
        """(B, T, ...) what x has at the predecessor of each token, 0 where there is none.

        Args:
            name: under which a cache keeps the last of x.
            x: (B, T, ...).
        """
        if self.cache is None:
            first = torch.zeros_like(x[:, :1])
        else:
            first = self.cache.last.get(name, torch.zeros_like(x[:, :1]))
            self.cache.last[name] = self._last(x, first)
        if self.index is None:
            return (
                F.pad(x[:, :-1], (0, 0) * (x.dim() - 2) + (1, 0))
                if self.cache is None
                else torch.cat([first, x[:, :-1]], dim=1)
            )
        wide = torch.cat([first, x], dim=1)
        places = (self.index + 1).view(*self.index.shape, *(1,) * (x.dim() - 2)).expand(-1, -1, *x.shape[2:])
        return wide.gather(1, places)

    def _last(self, x: Tensor, first: Tensor) -> Tensor:
        """(B, 1, ...) of the last real token."""
        if self.real is None:
            return x[:, -1:]
        order = torch.arange(1, x.shape[1] + 1, device=x.device) * self.real  # (B, T)
        place = order.amax(dim=1).view(-1, 1, *(1,) * (x.dim() - 2)).expand(-1, 1, *x.shape[2:])
        return torch.cat([first, x], dim=1).gather(1, place)


def _last_before(given: Tensor, real: Tensor | None, document_ids: Tensor | None, branch_ids: Tensor | None) -> Tensor:
    """(B, T) index of the last real token before each one that belongs to the same text; -1 where there is none."""
    index = torch.arange(given.shape[1], device=given.device)
    follows = (index < index[:, None])[None]  # (1 or B, T, T)
    if real is not None:
        follows = follows & real[:, None]
    if document_ids is not None:
        follows = follows & (document_ids[:, None] == document_ids[:, :, None])
    if branch_ids is not None:
        follows = follows & ((branch_ids[:, None] == branch_ids[:, :, None]) | (branch_ids[:, None] == 0))
    return torch.where(follows, index, -1).amax(dim=-1).expand(given.shape)
