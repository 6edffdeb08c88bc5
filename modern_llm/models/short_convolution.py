"""Convolution of texts over a few tokens, channel by channel, added to what it reads."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.embedding.predecessors import Predecessors


class _ShortConvolution(torch.autograd.Function):
    """Keeps its input alone for the backward pass; autograd would keep a shifted copy for every token of the width."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel)
        out = x * (1 + kernel[0])
        for step in range(1, min(len(kernel), x.shape[1])):
            out[:, step:].addcmul_(x[:, :-step], kernel[step])
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (grad,) = grad_outputs
        x, kernel = ctx.saved_tensors
        grad_x, grad_kernel = grad * (1 + kernel[0]), torch.zeros_like(kernel)
        grad_kernel[0] = (grad * x).sum((0, 1))
        for step in range(1, min(len(kernel), x.shape[1])):
            grad_x[:, :-step].addcmul_(grad[:, step:], kernel[step])
            grad_kernel[step] = (grad[:, step:] * x[:, :-step]).sum((0, 1))
        return grad_x, grad_kernel


class _ScatteredConvolution(torch.autograd.Function):
    """Likewise, where what stands before a token is not on its left: `rows` (width - 1, B * T) of it among those of x,
    B * T where there is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, kernel, rows)
        out, wide = x * (1 + kernel[0]), _with_nothing(x)
        for weight, earlier in zip(kernel[1:], rows, strict=True):
            out.addcmul_(wide.index_select(0, earlier).view_as(x), weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grad_outputs
        x, kernel, rows = ctx.saved_tensors
        wide, grad_wide, grad_kernel = _with_nothing(x), _with_nothing(grad * (1 + kernel[0])), torch.zeros_like(kernel)
        grad_kernel[0] = (grad * x).sum((0, 1))
        for step, earlier in enumerate(rows, start=1):
            grad_wide.index_add_(0, earlier, (grad * kernel[step]).flatten(0, 1))
            grad_kernel[step] = (grad.flatten(0, 1) * wide.index_select(0, earlier)).sum(0)
        return grad_wide[:-1].view_as(x), grad_kernel, None


def _with_nothing(x: Tensor) -> Tensor:
    """(B * T + 1, d) the tokens of x (B, T, d) and zeros."""
    return F.pad(x.flatten(0, 1), (0, 0, 0, 1))


def short_convolution(x: Tensor, kernel: Tensor, before: Predecessors, name: Hashable) -> Tensor:
    """x_t + sum_k kernel_k * x_{t-k}, of the tokens of each text alone.

    Args:
        x: (B, T, d).
        kernel: (width, d), that of the own token first.
        before: what stands in front of each token.
        name: under which a cache keeps the last of x.

    Returns:
        (B, T, d).
    """
    kernel = kernel.to(x.dtype)
    if before.cache is None and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        rows = before.rows(len(kernel) - 1)
        return _ShortConvolution.apply(x, kernel) if rows is None else _ScatteredConvolution.apply(x, kernel, rows)
    out = x * (1 + kernel[0])
    for step, earlier in enumerate(before.of(name, x, len(kernel) - 1), start=1):
        out = out + kernel[step] * earlier
    return out
