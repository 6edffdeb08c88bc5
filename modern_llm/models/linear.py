"""Linear layers that read their weights at full memory speed when the CPU multiplies a few rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.kernels import few_rows_route


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N,): `F.linear`, with other kernels for decoding steps on
    the CPU, which take as long as their weights take to be read.

    On processors of AMD, MKL reads a weight fastest where it is the left factor. For a single row it then picks its
    matrix-vector product, which runs on one thread; pieces of the weight, as a batch of products, run on all of them.
    """
    route = few_rows_route(x, weight)
    if route == "plain":
        return F.linear(x, weight, bias)
    if route == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
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
    """`nn.Linear` by way of `linear`.

    Args:
        d_in, d_out: width of input and output.
        bias: whether there is one.
        rows: of the maps that are stored as one, which sum to `d_out`; None: it is one map. An optimiser may treat
            them one by one.
        ends_branch: whether it writes to the residual stream, which the initial weights depend on.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        bias: bool = True,
        rows: tuple[int, ...] | None = None,
        ends_branch: bool = False,
    ) -> None:
        super().__init__(d_in, d_out, bias)
        self.stacked_rows = {} if rows is None else {"weight": rows}
        self.ends_branch = ends_branch

    def reset_parameters(self) -> None:
        """Zero: the whole model's weights are drawn together, see `initialisation/draw.py`."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
