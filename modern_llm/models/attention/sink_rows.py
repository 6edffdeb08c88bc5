"""Learned attention sinks as rows of keys and values: what the settings of `sinks.py` build.

Every query sees the rows, so a sink is one more column of the same softmax and never a second softmax: the fused
kernels still apply.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.rotary import Rotation, rotate
from modern_llm.models.parameter_kinds import VECTORS

_WIDTH_MULTIPLE = 8  # fused kernels want head widths in multiples of 8


class SinkRows(nn.Module):
    """The learned rows of one layer."""

    def parameter_kind(self, name: str) -> str:
        """What a weight is, for optimisers."""
        return VECTORS

    @abstractmethod
    def join(
        self, q: Tensor, k: Tensor, v: Tensor, turn: Rotation | None, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put the rows in front of keys and values.

        Args:
            q: (B, T, H, D) rotated queries.
            k, v: (B, n, Hkv, D) rotated keys, and values.
            turn: moves the sinks to their distance inside the window; None: they stay at position 0.
            scale: that attention multiplies its scores by.

        Returns:
            q (B, T, H, D'), k and v (B, S + n, Hkv, D') with D' >= D; the first D columns of what comes out of
            attention are the result.
        """

    @abstractmethod
    def reset(self, std: float, generator: torch.Generator) -> None:
        """Draw the initial values; std is that of the model's matrices."""


class LearnedRows(SinkRows):
    """S learned keys and values per key/value head, at rotary position 0 (Xiao et al. 2023, arXiv 2309.17453, section
    3.3).

    Args:
        rows: S.
        n_kv_heads, head_size: shape of a row.
    """

    def __init__(self, rows: int, n_kv_heads: int, head_size: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.empty(rows, n_kv_heads, head_size))
        self.values = nn.Parameter(torch.empty(rows, n_kv_heads, head_size))

    def join(
        self, q: Tensor, k: Tensor, v: Tensor, turn: Rotation | None, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        keys = rotate(self.keys[None], turn).to(k.dtype).expand(len(k), -1, -1, -1)  # (B, S, Hkv, D)
        values = self.values.to(v.dtype).expand(len(v), -1, -1, -1)
        return q, torch.cat([keys, k], dim=1), torch.cat([values, v], dim=1)

    def reset(self, std: float, generator: torch.Generator) -> None:
        nn.init.normal_(self.keys, std=std, generator=generator)
        nn.init.zeros_(self.values)


class LogitRow(SinkRows):
    """One learned logit per query head (gpt-oss, arXiv 2508.10925): a key whose product with every query of head h is
    the logit of h, and the value 0.

    The heads of a group share their keys, so each head reads a coordinate of its own among those added to the width.

    Args:
        n_heads, n_kv_heads: query heads H and key/value heads.
    """

    def __init__(self, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.empty(n_heads))
        self.n_kv_heads = n_kv_heads

    def join(
        self, q: Tensor, k: Tensor, v: Tensor, turn: Rotation | None, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, T, H, D = q.shape
        group = H // self.n_kv_heads
        extra = -(-group // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        own = torch.eye(group, extra, dtype=q.dtype, device=q.device).repeat(self.n_kv_heads, 1)  # (H, extra)
        logits = self.logits.view(self.n_kv_heads, group) / scale
        row = F.pad(logits, (D, extra - group)).to(k.dtype)  # (Hkv, D + extra)
        q = torch.cat([q, own.expand(B, T, H, extra)], dim=-1)
        k = torch.cat([row.expand(B, 1, -1, -1), F.pad(k, (0, extra))], dim=1)
        return q, k, F.pad(v, (0, extra, 0, 0, 1, 0))

    def reset(self, std: float, generator: torch.Generator) -> None:
        nn.init.zeros_(self.logits)
