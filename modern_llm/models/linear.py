"""Linear layers that read their weights at full memory speed when the CPU multiplies a few rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.kernels import reads_weight_as_pieces


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,): `F.linear`, with another kernel in one case.

    A decoding step on the CPU takes as long as its weights take to be read. MKL's matrix-vector product, which
    `F.linear` picks for one row, reads them at a quarter of the speed of its batched matrix product (measured on an
    AMD EPYC); for up to eight rows the batched one wins as well. So the weight goes first, in pieces.
    """
    if not reads_weight_as_pieces(x, weight):
        return F.linear(x, weight, bias)
    N, K = weight.shape
    columns = x.reshape(-1, K).t()  # (K, rows)
    pieces = math.gcd(N, 2 * torch.get_num_threads())
    out = torch.bmm(weight.view(pieces, -1, K), columns.expand(pieces, -1, -1))  # (pieces, N / pieces, rows)
    out = out.view(N, -1).t().reshape(*x.shape[:-1], N)
    return out if bias is None else out + bias


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
