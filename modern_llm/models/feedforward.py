"""SwiGLU feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.linear import Linear


class _SwiGLU(torch.autograd.Function):
    """silu(gate) * up, keeping only its input for the backward pass: plain autograd keeps silu(gate) as well."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (grad,) = grad_outputs
        (gate_up,) = ctx.saved_tensors  # read once: activation checkpointing recomputes at each reading
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad, F.silu(gate), out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad * up, gate))
        return grad_gate_up


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up (eq. 5 without bias). gate_up: (..., 2 F), the gate in the first half; returns (..., F)."""
    if torch.compiler.is_compiling() or not gate_up.requires_grad:
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)); gate and up are one matrix, so that x is read once.

    Args:
        d_model: width of input and output.
        hidden_size: width between.
    """

    def __init__(self, d_model: int, hidden_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(d_model, 2 * hidden_size, bias=False)
        self.down_proj = Linear(hidden_size, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_up_proj(x)))
