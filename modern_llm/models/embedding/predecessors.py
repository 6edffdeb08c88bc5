"""What stood a few tokens earlier, in packed documents, branches, padded texts and behind a cache."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.plan import new_tokens


class Predecessors:
    """The tokens in front of each token of one pass: the real ones before it in its own document and, for a branch, in
    itself or in its trunk.

    Args:
        attention_mask, document_ids, branch_ids: (B, T), as in `ModernDecoderLM.hidden_states`.
        cache: what the tokens continue; it remembers the last real tokens of each text for the next pass.
    """

    def __init__(
        self,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        branch_ids: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> None:
        self.cache, self._marks = cache, (attention_mask, document_ids, branch_ids)
        self.real = None if attention_mask is None else attention_mask.bool()
        self._rows: dict[int, Tensor] = {}  # of the convolutions of all blocks
        self.index: Tensor | None = None  # (B, T) where the predecessor stands; -1: in front of this pass
        if self.real is not None or document_ids is not None or branch_ids is not None:
            given = next(t for t in (attention_mask, document_ids, branch_ids) if t is not None)
            self.index = _last_before(given, self.real, document_ids, branch_ids)

    @property
    def plain(self) -> bool:
        """Whether the predecessor of each token is the one on its left, and that of the first is none."""
        return self.cache is None and self.index is None

    def positions(self, x: Tensor) -> tuple[Tensor, int | None]:
        """(1 or B, T) the position of every token of x (B, T, d) in its text, counted as for rotary positions, and how
        long the texts are, padding included; None where several stand in a row."""
        T = x.shape[1]
        past = 0 if self.cache is None else self.cache.length
        held = None if self.cache is None else self.cache.parts[0]
        tokens = new_tokens(x.device, T, past, held, *self._marks)
        return tokens.positions, None if self._marks[1:] != (None, None) else past + T

    def of(self, name: Hashable, x: Tensor, steps: int = 1) -> list[Tensor]:
        """What x has 1, 2, … `steps` tokens before each token, 0 where there is none: (B, T, d) each.

        Args:
            name: under which a cache keeps the last of x; looked at only there, lest equal blocks compile one by one.
            x: (B, T, d).
            steps: how far back.
        """
        T = x.shape[1]
        if self.plain:
            return [shifted(x, step) for step in range(1, steps + 1)]
        held = None if self.cache is None else self.cache.last.get(name)
        if held is None:
            held = torch.zeros_like(x[:, :1]).expand(-1, steps, -1)
        wide = torch.cat([held, x], dim=1)  # (B, steps + T, d): oldest first
        if self.index is None:
            back = [wide[:, steps - step : steps - step + T] for step in range(1, steps + 1)]
        else:
            wide = F.pad(wide, (0, 0, 1, 0))  # in front of everything there is nothing
            before = self._walk(steps)
            places, back = before[:, steps + 1 :], []
            for _ in range(steps):
                back.append(_taken(wide, places))
                places = before.gather(1, places)
        if self.cache is not None:
            self.cache.last[name] = self._last(wide, steps)
        return back

    def rows(self, steps: int) -> Tensor | None:
        """(steps, B * T) where what stands 1, 2, … `steps` tokens before each token is among all B * T tokens of a pass
        without a cache; B * T where there is none. None: it is on its left."""
        if self.index is None:
            return None
        if steps in self._rows:
            return self._rows[steps]
        B, T = self.index.shape
        texts = torch.arange(0, B * T, T, device=self.index.device)[:, None]
        found = [self.index]
        for _ in range(1, steps):
            further = self.index.gather(1, found[-1].clamp(min=0))
            found.append(torch.where(found[-1] >= 0, further, -1))
        rows = [torch.where(places >= 0, texts + places, B * T).flatten() for places in found]
        self._rows[steps] = torch.stack(rows)
        return self._rows[steps]

    def _walk(self, steps: int) -> Tensor:
        """(B, 1 + steps + T) the place in front of every place of what `of` lines up: nothing, what is held, and the
        pass."""
        assert self.index is not None
        first = 1 + steps
        inside = torch.where(self.index >= 0, self.index + first, steps)
        outside = torch.arange(-1, steps, device=inside.device).clamp(min=0).expand(len(inside), -1)
        return torch.cat([outside, inside], dim=1)

    def _last(self, wide: Tensor, steps: int) -> Tensor:
        """(B, steps, d) of the last real tokens, oldest first."""
        if self.index is None:
            return wide[:, -steps:]
        before = self._walk(steps)
        if self.real is None:
            place = torch.full_like(before[:, :1], wide.shape[1] - 1)
        else:
            order = torch.arange(1, self.real.shape[1] + 1, device=wide.device) * self.real  # (B, T)
            place = steps + order.amax(dim=1, keepdim=True)
        found = []
        for _ in range(steps):
            found.append(_taken(wide, place))
            place = before.gather(1, place)
        return torch.cat(found[::-1], dim=1)


def shifted(x: Tensor, step: int) -> Tensor:
    """(B, T, d) x moved `step` tokens to the right, 0 in front."""
    return F.pad(x[:, : max(x.shape[1] - step, 0)], (0, 0, min(step, x.shape[1]), 0))


def _taken(wide: Tensor, places: Tensor) -> Tensor:
    """(B, n, d) of wide (B, m, d) at places (B, n)."""
    B, m, d = wide.shape
    texts = torch.arange(0, B * m, m, device=wide.device)[:, None]
    # Whole tokens are copied, and their gradients added: on a CPU five times as fast as number by number.
    return wide.reshape(-1, d).index_select(0, (texts + places).flatten()).view(B, -1, d)


def _last_before(given: Tensor, real: Tensor | None, document_ids: Tensor | None, branch_ids: Tensor | None) -> Tensor:
    """(B, T) index of the last real token before each one that belongs to the same text; -1 where there is none.

    Documents and branches stand together, and a branch behind its trunk: it is the last real token of all, or the last
    one of the trunk.
    """
    index = torch.arange(given.shape[1], device=given.device).expand(given.shape)
    eligible = torch.ones_like(given, dtype=torch.bool) if real is None else real
    last = _latest(index, eligible)
    if document_ids is not None:
        last = torch.where(_same(document_ids, last), last, -1)
    if branch_ids is None:
        return last
    trunk = _latest(index, eligible & (branch_ids == 0))
    if document_ids is not None:
        trunk = torch.where(_same(document_ids, trunk), trunk, -1)
    return torch.where(_same(branch_ids, last), last, trunk)


def _latest(index: Tensor, eligible: Tensor) -> Tensor:
    """(B, T) the largest index in front of each place at which `eligible`; -1 where there is none."""
    up_to = torch.where(eligible, index, -1).cummax(dim=1).values
    return F.pad(up_to[:, :-1], (1, 0), value=-1)


def _same(marks: Tensor, index: Tensor) -> Tensor:
    """(B, T) whether each place has the mark (B, T) of the place at index, which is none where it is -1."""
    return (marks.gather(1, index.clamp(min=0)) == marks) & (index >= 0)
