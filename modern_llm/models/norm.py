"""RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016, arXiv 1607.06450)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.kernels import has_fused_rms_norm


class _RMSNorm(torch.autograd.Function):
    """RMSNorm that keeps its input and one number per row for the backward pass. Where there is no fused kernel, torch
    composes the norm of smaller operations: it keeps the normalised input as well and passes about twice as often over
    memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        exact = x.to(torch.promote_types(x.dtype if weight is None else weight.dtype, torch.float32))
        scale = (torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed = exact * scale
        return (normed if weight is None else normed.mul_(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grad_outputs
        x, weight, scale = ctx.saved_tensors
        if x.dtype == scale.dtype and weight is not None and weight.dtype == scale.dtype:
            # LayerNorm's kernel, told that the mean is zero: one pass gives all but what it takes off for the mean.
            found = torch.ops.aten.native_layer_norm_backward(
                grad, x, x.shape[-1:], torch.zeros_like(scale), scale, weight, None, [True, True, False]
            )
            of_mean = (grad @ weight)[..., None].mul_(scale).div_(x.shape[-1])
            return found[0].add_(of_mean), found[1], None
        normed, grad = x.to(scale.dtype) * scale, grad.to(scale.dtype)
        grad_weight = None if weight is None else (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad_normed = grad * (1 if weight is None else weight)
        mean = (grad_normed * normed).mean(dim=-1, keepdim=True)
        return grad_normed.addcmul_(normed, mean, value=-1).mul_(scale).to(x.dtype), grad_weight, None


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """`RMSNorm` as a function; weight None: none."""
    if torch.is_grad_enabled() and not has_fused_rms_norm(x):
        return _RMSNorm.apply(x, weight, eps)
    exact = torch.promote_types(x.dtype if weight is None else weight.dtype, torch.float32)
    weight = None if weight is None else weight.to(exact)
    return F.rms_norm(x.to(exact), x.shape[-1:], weight, eps).to(x.dtype)


class Norm(nn.Module):
    """What all norms share."""

    @abstractmethod
    def reset(self) -> None:
        """Initial values: the norm alone."""


class RMSNorm(Norm):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension (eq. 4), with or without the weight; any leading
    shape.

    On every device, under autocast or not, all of it is computed in fp32 at least and the result has the type of x.

    Args:
        size: width of the last dimension.
        eps: added under the root.
        gain: whether there is a weight.
    """

    def __init__(self, size: int, eps: float, gain: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if gain else None
        self.eps = eps

    def reset(self) -> None:
        if self.weight is not None:
            nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(Norm):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension (eq. 4); types as in `RMSNorm`.

    Args:
        size: width of the last dimension.
        eps: added under the root.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.eps = eps

    def reset(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        exact = torch.promote_types(x.dtype, torch.promote_types(self.weight.dtype, torch.float32))
        weight, bias = self.weight.to(exact), self.bias.to(exact)
        return F.layer_norm(x.to(exact), x.shape[-1:], weight, bias, self.eps).to(x.dtype)
