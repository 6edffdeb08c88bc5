"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (eq. 4); any leading shape.

    Args:
        size: width of the last dimension.
        eps: added under the root.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the weight stays fp32 while x is 16-bit; the fused kernel wants one dtype.
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
