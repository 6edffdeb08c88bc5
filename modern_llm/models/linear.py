"""Linear layers that read their weights at full memory speed when the CPU multiplies a few rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.kernels import reads_weight_as_pieces


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,): `F.linear`, with another kernel in one case.

    A decoding step on the CPU takes as long as its weights take to be read, and MKL reads them fastest where the weight
    is the left factor. For a single row it then picks its matrix-vector product, which runs on one thread; pieces of
    the weight, as a batch of products, run on all of them.
    """
    if not reads_weight_as_pieces(x, weight):
        return F.linear(x, weight, bias)
    N, K = weight.shape
    columns = x.reshape(-1, K).t()  # (K, rows)
    if columns.shape[1] > 1:
        out = weight @ columns  # (N, rows)
    else:
        pieces = math.gcd(N, 2 * torch.get_num_threads())
        out = torch.bmm(weight.view(pieces, -1, K), columns.expand(pieces, -1, -1)).view(N, 1)
    out = out.t().contiguous().view(*x.shape[:-1], N)
    return out if bias is None else out.add_(bias)


class Linear(nn.Linear):
    """`nn.Linear` by way of `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
