"""Attention of several continuations of one text, each to the text and to itself alone, without the scores between
them: a row of A branches would have A times as many as it needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modern_llm.models.kernels import additive_mask, fused_attention


@dataclass
class Branches:
    """Where the branches of B rows stand; built once per forward pass.

    Attributes:
        trunk: tokens of the longest trunk, Tp.
        places: (B A K,) of the k-th token of each branch among the B T tokens; of padding, B T.
        mask: (B A, 1, K, Tp + K) to be added to the scores of a branch: its trunk, and its own tokens up to each.
        shape: B, A, K.
    """

    trunk: int
    places: Tensor
    mask: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, lengths: Tensor, tokens: int, device: torch.device, dtype: torch.dtype) -> Branches | None:
        """Those of rows in which a trunk stands in front of its branches, one behind the other.

        Args:
            lengths: (B, 1 + A) tokens of the trunk and of each branch, on the host.
            tokens: T of a row.
            device, dtype: of attention.

        Returns:
            None where there is no token in any branch.
        """
        B, A = lengths.shape[0], lengths.shape[1] - 1
        trunk, K = int(lengths[:, 0].max()), int(lengths[:, 1:].max())
        if K == 0:
            return None
        own = torch.arange(K)
        real = own < lengths[:, 1:, None]  # (B, A, K)
        starts = lengths.cumsum(1)[:, :-1, None]  # (B, A, 1)
        rows = torch.arange(B)[:, None, None] * tokens
        places = torch.where(real, rows + starts + own, B * tokens)
        to_trunk = (torch.arange(trunk) < lengths[:, :1]).view(B, 1, 1, trunk).expand(B, A, K, trunk)
        to_own = (own <= own[:, None]) & real[:, :, None]  # (B, A, K, K)
        visible = torch.cat([to_trunk, to_own], -1).flatten(0, 1)[:, None]
        moved = (t.to(device, non_blocking=True) for t in (places.flatten(), visible))
        places, visible = moved
        return cls(trunk, places, additive_mask(visible, dtype), (B, A, K))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
        """Attention of the rows, 0 at padding.

        Args:
            q: (B, T, H, D). k, v: (B, T, Hkv, D). scale, dropout: as in `fused_attention`.

        Returns:
            (B, T, H, D).
        """
        (B, A, K), T, start = self.shape, q.shape[1], self.trunk
        inside = self.places.clamp(max=B * T - 1)
        at_trunk = fused_attention(q[:, :start], k[:, :start], v[:, :start], None, start > 1, scale, dropout)
        queries = q.flatten(0, 1)[inside].view(B * A, K, *q.shape[2:])
        keys, values = (
            torch.cat([t[:, :start].repeat_interleave(A, 0), t.flatten(0, 1)[inside].view(B * A, K, *t.shape[2:])], 1)
            for t in (k, v)
        )
        at_branches = fused_attention(queries, keys, values, self.mask, False, scale, dropout)
        # What stands behind a shorter trunk is of a branch and is overwritten; padding goes to a row that is dropped.
        out = torch.cat([at_trunk, at_trunk.new_zeros(B, T - start, *q.shape[2:])], 1).flatten(0, 1)
        out = torch.cat([out, out.new_zeros(1, *q.shape[2:])])
        out = out.index_copy(0, self.places, at_branches.flatten(0, 1))
        return out[:-1].view(B, T, *q.shape[2:])
