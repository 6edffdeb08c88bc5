"""The dense feed-forward layer of any kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.feed_forward.kinds import FeedForwardKind
from modern_llm.models.linear import Linear, linear


def activate(projected: Tensor, kind: FeedForwardKind) -> Tensor:
    """The hidden layer. projected: (..., parts F), the gate in the first half; returns (..., F)."""
    if not kind.gated:
        return kind.act(projected)
    gate, up = projected.chunk(2, dim=-1)
    activated, factor = kind.act(gate), kind.factor(up)
    return activated * factor if torch.is_grad_enabled() else activated.mul_(factor)


class _ActivatedLinear(torch.autograd.Function):
    """A linear map of the hidden layer that keeps only what the first matrix gave: the hidden layer, the widest of the
    block, is made again in the backward pass, which costs one pass over memory and no matrix product."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, weight: Tensor, kind: FeedForwardKind) -> Tensor:
        ctx.save_for_backward(projected, weight)
        ctx.kind = kind
        return F.linear(activate(projected, kind), weight)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (grad,) = grad_outputs
        projected, weight = ctx.saved_tensors  # read once: activation checkpointing allows no second read
        kind: FeedForwardKind = ctx.kind
        gate, up = projected.chunk(2, dim=-1) if kind.gated else (projected, None)
        activated, factor = kind.act(gate), None if up is None else kind.factor(up)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            hidden = activated if factor is None else activated * factor
            grad_weight = (grad.flatten(0, -2).t() @ hidden.flatten(0, -2)).to(weight.dtype)
        grad_hidden = grad @ weight.to(grad.dtype)
        if up is None or factor is None:
            return kind.act_backward(grad_hidden, gate), grad_weight, None
        grad_projected = torch.empty_like(projected)
        grad_gate, grad_up = grad_projected.chunk(2, dim=-1)
        torch.mul(grad_hidden, activated, out=grad_up)
        if factor is not up:
            grad_up.copy_(kind.factor_backward(grad_up, up))
        grad_gate.copy_(kind.act_backward(grad_hidden.mul_(factor), gate))
        return grad_projected, grad_weight, None


def activated_linear(projected: Tensor, weight: Tensor, kind: FeedForwardKind, bias: Tensor | None = None) -> Tensor:
    """What the first map gave, through the function and the second map.

    Args:
        projected: (..., parts F), the gate in the first half.
        weight: (N, F).
        bias: (N,) of the second map, or None.

    Returns:
        (..., N).
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return linear(activate(projected, kind), weight, bias)
    out = _ActivatedLinear.apply(projected, weight, kind)
    return out if bias is None else out + bias.to(out.dtype)


def input_name(kind: FeedForwardKind) -> str:
    """What the first matrix is called."""
    return "gate_up_proj" if kind.gated else "up_proj"


class FeedForward(nn.Module):
    """down(act(gate(x)) * factor(up(x))), or down(act(up(x))); gate and up are one matrix, so that x is read once.

    Args:
        kind: the function between the matrices.
        d_model: width of input and output.
        hidden_size: width between.
        dropout: on the layer between, in training.
        bias: whether both maps have one.
    """

    def __init__(
        self, kind: FeedForwardKind, d_model: int, hidden_size: int, dropout: float = 0.0, bias: bool = False
    ) -> None:
        super().__init__()
        self.kind, self.dropout = kind, dropout
        rows = (hidden_size,) * kind.parts
        self.add_module(input_name(kind), Linear(d_model, sum(rows), bias, rows))
        self.down_proj = Linear(hidden_size, d_model, bias, ends_branch=True)

    def forward(self, x: Tensor) -> Tensor:
        projected = getattr(self, input_name(self.kind))(x)
        if self.dropout and self.training:
            return self.down_proj(F.dropout(activate(projected, self.kind), self.dropout))
        if type(self.down_proj) is Linear:
            return activated_linear(projected, self.down_proj.weight, self.kind, self.down_proj.bias)
        return self.down_proj(activate(projected, self.kind))  # an adapter has been put around it
