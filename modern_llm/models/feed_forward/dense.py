"""SwiGLU feed-forward layer (Shazeer 2020, arXiv 2002.05202)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.linear import Linear, linear


class _SwiGLULinear(torch.autograd.Function):
    """A linear map of silu(gate) * up that keeps only gate and up: the hidden layer, the widest of the block, is made
    again in the backward pass, which costs one pass over memory and no matrix product."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.linear(F.silu(gate).mul_(up), weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None]:
        (grad,) = grad_outputs
        gate_up, weight = ctx.saved_tensors  # read once: activation checkpointing allows no second read
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            hidden = activated * up
            grad_weight = (grad.flatten(0, -2).t() @ hidden.flatten(0, -2)).to(weight.dtype)
        grad_hidden = grad @ weight.to(grad.dtype)
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad_hidden, activated, out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad_hidden.mul_(up), gate))
        return grad_gate_up, grad_weight


def swiglu_linear(gate_up: Tensor, weight: Tensor) -> Tensor:
    """(silu(gate) * up) @ weight.T (eq. 5 and the map behind it, without biases).

    Args:
        gate_up: (..., 2 F), the gate in the first half.
        weight: (N, F).

    Returns:
        (..., N).
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return linear(swiglu(gate_up), weight)
    return _SwiGLULinear.apply(gate_up, weight)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up. gate_up: (..., 2 F), the gate in the first half; returns (..., F)."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


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
        gate_up = self.gate_up_proj(x)
        if type(self.down_proj) is Linear:
            return swiglu_linear(gate_up, self.down_proj.weight)
        return self.down_proj(swiglu(gate_up))  # an adapter has been put around it
