"""Trained weights that are held in 16 bits, and rounded at random where they are updated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_CUT = 2**16  # what is behind the last bit of bf16, in units of fp32's last bit


def narrow_trained_weights(model: nn.Module) -> None:
    """Hold trained matrices and tables in bf16, in place. Vectors and scalars, which are few, stay in fp32. What is
    looked up in a table is spread out to fp32, so that the residual stream stays what it is."""
    for module in model.modules():
        for p in module.parameters(recurse=False):
            if p.requires_grad and p.dim() >= 2 and p.dtype == torch.float32:
                p.data = p.data.bfloat16()
        if isinstance(module, nn.Embedding) and module.weight.dtype == torch.bfloat16 and module.weight.requires_grad:
            module.register_forward_hook(_widened)


def _widened(module: nn.Module, args: Any, found: Tensor) -> Tensor:
    return found.float()


def in_fp32(tensors: list[Tensor]) -> list[Tensor]:
    """Tensors to compute updates with: themselves, or of those in bf16 a copy."""
    return [tensor.float() if tensor.dtype == torch.bfloat16 else tensor for tensor in tensors]


def put_back(parameters: list[Tensor], updated: list[Tensor]) -> None:
    """Take over what was computed with `in_fp32`."""
    for p, wide in zip(parameters, updated, strict=True):
        if wide is not p:
            p.copy_(rounded_at_random(wide))


def rounded_at_random(values: Tensor) -> Tensor:
    """One of the two neighbours in bf16 of each number in fp32, each the more likely the nearer it is, so that the
    mean is the number (stochastic rounding, Gupta et al. 2015, arXiv 1502.02551, section 3). Overwrites its input."""
    bits = values.view(torch.int32)
    bits += torch.empty_like(bits).random_(0, _CUT)
    bits &= -_CUT
    return values.bfloat16()
