"""Attention of many texts to the few that they go on from, whose keys and values are held once and read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from modern_llm.models.attention.joining import at_the_end, joined_marks, joined_states
from modern_llm.models.kernels import additive_mask, attention_with_lse


class Trunks:
    """What P texts have of keys and values, from which B texts go on.

    The queries of all texts on one trunk meet its keys in one product, as if they were tokens of one text; what each
    text sees of its own comes from a second softmax, and the two are put together by the logarithms of their sums
    (Hydragen, Juravsky et al. 2024, arXiv 2402.05099, section 3).

    Args:
        keys, values: (P, L, Hkv, D) by layer.
        real: (P, L) False at padding, or None where no trunk is padded.
        owners: (B,) numbers of the trunks that the texts go on from, on the host.

    Attributes:
        length: tokens L of a trunk, padding included.
    """

    def __init__(
        self, keys: Mapping[int, Tensor], values: Mapping[int, Tensor], real: Tensor | None, owners: Sequence[int]
    ) -> None:
        self._keys, self._values, self._real = dict(keys), dict(values), real
        self.length = next(iter(self._keys.values())).shape[1]
        self._arrange(list(owners))

    def _arrange(self, owners: list[int]) -> None:
        """Give each text a place beside those that share its trunk, N on each: as many as the largest group has."""
        # What no text goes on from is dropped.
        used = sorted(set(owners))
        first = next(iter(self._keys.values()))
        if len(used) < len(first):
            kept = torch.tensor(used, device=first.device)
            for held in (self._keys, self._values):
                for layer, states in held.items():
                    held[layer] = states.transpose(1, 2)[kept].transpose(1, 2)
            self._real = None if self._real is None else self._real[kept]
        numbers = {owner: number for number, owner in enumerate(used)}
        self._owners = [numbers[owner] for owner in owners]
        self._shape = len(used), max(Counter(owners).values())
        P, N = self._shape
        places, taken, texts = [], [0] * P, [0] * (P * N)  # a place without a text computes the first one in vain
        for text, owner in enumerate(self._owners):
            places.append(owner * N + taken[owner])
            texts[places[-1]] = text
            taken[owner] += 1
        # (B,) places of the texts among P x N, and (P N,) texts at the places; None: text b is at place b.
        self._places = self._texts = None
        if places != list(range(P * N)):
            self._places, self._texts = (torch.tensor(t, device=first.device) for t in (places, texts))
        self._mask = None if self._real is None else additive_mask(self._real[:, None, None], first.dtype)

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with the texts of these rows alone."""
        self._arrange([self._owners[row] for row in rows])

    def join(self, other: Trunks | None, length: int) -> None:
        """Go on with these texts and, behind them, those on other trunks. No trunk has more than `length` real tokens;
        `length` becomes that, and padding stands in front of the shorter ones."""
        if other is None and self.length == length:
            return
        joined = [self] if other is None else [self, other]
        padded = any(trunks._real is not None or trunks.length != length for trunks in joined)
        real = [trunks._real_tokens() for trunks in joined]
        orders = [at_the_end(marks, length) for marks in real]
        for held in ("_keys", "_values"):
            for layer in self._keys:
                states = [getattr(trunks, held)[layer].transpose(1, 2) for trunks in joined]
                getattr(self, held)[layer] = joined_states(states, orders, length).transpose(1, 2)
        self._real, self.length = joined_marks(real, orders, length) if padded else None, length
        P = self._shape[0]
        self._arrange(self._owners + ([] if other is None else [P + owner for owner in other._owners]))

    def _real_tokens(self) -> Tensor:
        """(P, L) False at padding."""
        if self._real is not None:
            return self._real
        first = next(iter(self._keys.values()))
        return torch.ones(first.shape[:2], dtype=torch.bool, device=first.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        """Attention of one token of each text to all of its trunk, and to what the text has of its own.

        Args:
            layer: of the model.
            q: (B, 1, H, D').
            k, v: (B, n, Hkv, D') of each text's own, D' >= D: what is wider than the trunks concerns these alone.
            mask: (1 or B, 1, 1, n) additive, of these; None: all are seen.
            scale: of the scores.

        Returns:
            (B, 1, H, D).
        """
        (P, N), keys, values = self._shape, self._keys[layer], self._values[layer]
        H, D = q.shape[2], keys.shape[3]
        q = q.to(keys.dtype)
        beside = q if self._texts is None else q[self._texts]  # (P N, 1, H, D')
        at_trunk, lse_trunk = attention_with_lse(beside[..., :D].reshape(P, N, H, D), keys, values, self._mask, scale)
        at_trunk, lse_trunk = at_trunk.reshape(P * N, H, D), lse_trunk.reshape(P * N, H)
        if self._places is not None:
            at_trunk, lse_trunk = at_trunk[self._places], lse_trunk[self._places]
        at_own, lse_own = attention_with_lse(q, k, v, mask, scale)
        # exp(own) / (exp(trunk) + exp(own)): the share of the one softmax over both that lies on the own keys.
        share = (lse_own[:, 0] - lse_trunk).sigmoid()[..., None].to(at_trunk.dtype)  # (B, H, 1)
        return at_trunk.lerp(at_own[:, 0, :, :D], share)[:, None]
