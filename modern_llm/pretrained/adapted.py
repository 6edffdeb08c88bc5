"""Linear maps under adapters, with one pass over what they give where peft makes three."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modern_llm.models.kernels import compute_dtype
from modern_llm.models.linear import Linear, linear


def adapted_product(
    x: Tensor, dropped: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor, out: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """x W^T + b + s (x' A^T) B^T (Hu et al. 2021, arXiv 2106.09685, eq. 3), and the s (x' A^T) inside; all of one type.

    Args:
        x: (..., K). dropped: (..., K), x' behind dropout. weight: (N, K). bias: (N,). into: (r, K), A. out: (N, r), B.
        scale: s.

    Returns:
        (..., N), and (M, r) of all M rows.
    """
    low = (dropped.reshape(-1, dropped.shape[-1]) @ into.t()).mul_(scale)
    found = linear(x, weight, bias)
    return found.view(-1, found.shape[-1]).addmm_(low, out.t()).view(found.shape), low


class _AdaptedProduct(torch.autograd.Function):
    """`adapted_product` of a frozen W and b; `dropped` None: it is x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dropped: Tensor | None, weight: Tensor, bias: Tensor | None, into: Tensor, out: Tensor,
        scale: float,
    ) -> Tensor:  # fmt: skip
        read = x if dropped is None else dropped
        a, b = into.to(x.dtype), out.to(x.dtype)
        found, low = adapted_product(x, read, weight, bias, a, b, scale)
        ctx.save_for_backward(read, low, weight, a, b)
        ctx.scale, ctx.types, ctx.is_one = scale, (into.dtype, out.dtype), dropped is None
        return found

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        read, low, weight, a, b = ctx.saved_tensors
        shape, grad = read.shape, grad_outputs[0].reshape(-1, len(weight))  # (M, N)
        grad_low = (grad @ b).mul_(ctx.scale)  # (M, r)
        grad_out, grad_into = grad.t() @ low, grad_low.t() @ read.reshape(-1, shape[-1])
        grad_x = grad_dropped = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight
            grad_x = (grad_x.addmm_(grad_low, a) if ctx.is_one else grad_x).view(shape)
        if ctx.needs_input_grad[1]:
            grad_dropped = (grad_low @ a).view(shape)
        of_into, of_out = ctx.types
        return grad_x, grad_dropped, None, None, grad_into.to(of_into), grad_out.to(of_out), None


class AdaptedLinear(PeftLinear):
    """A linear map of peft's with one plain adapter, computed by `_AdaptedProduct` where it is trained; all else is
    left to peft."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or not self._is_plain:
            return super().forward(x, *args, **kwargs)
        (name,), dtype, bias = self.active_adapters, compute_dtype(x), self.base_layer.bias
        x, weight, bias = x.to(dtype), self.weight_of_map.to(dtype), None if bias is None else bias.to(dtype)
        drop: Any = self.lora_dropout[name]
        into, out = self.lora_A[name].weight, self.lora_B[name].weight
        dropped = drop(x) if self.training and isinstance(drop, nn.Dropout) and drop.p > 0 else None
        return _AdaptedProduct.apply(x, dropped, weight, bias, into, out, self.scaling[name])

    @property
    def weight_of_map(self) -> Tensor:
        """(N, K) weight of the map below the adapter; GPT-2 holds it the other way round."""
        held: Any = self.base_layer.weight
        return held.t() if self.fan_in_fan_out else held

    @property
    def _is_plain(self) -> bool:
        """Whether the map is frozen, in numbers, and has one adapter of the first kind that is trained."""
        return (
            not torch.compiler.is_compiling()
            and not self.disable_adapters
            and not self.merged
            and len(self.active_adapters) == 1
            and self.active_adapters[0] in self.lora_A
            and not self.lora_variant
            and type(self.base_layer) in (nn.Linear, Linear, Conv1D)
            and not any(p.requires_grad for p in self.base_layer.parameters())
        )


def compute_adapted(model: nn.Module) -> None:
    """Have the linear maps under a model's adapters computed by `AdaptedLinear`, in place."""
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = AdaptedLinear
