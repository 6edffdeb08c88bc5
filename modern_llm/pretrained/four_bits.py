"""Frozen linear maps in 4 bits under adapters: QLoRA (Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.kernels import compute_dtype

BLOCK = 64  # weights with a scale of their own
# NF4, the numbers that 4 bits stand for: quantiles of a normal distribution, 0 among them, the largest 1 (appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (n,) of two weights each, and scales (blocks,) in bf16, each the largest weight of its 64.

    The weight is taken in bf16 first, in which models are published: its codes are then the same whether it was loaded
    in 16 bits or in 32, and a scale is exact in 2 bytes.

    Args:
        weight: of any shape, which is read in rows.
    """
    flat = weight.detach().bfloat16().flatten()
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    values = torch.tensor(NF4, device=weight.device)
    shares = blocks.float() / scales.float().clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    codes = torch.bucketize(shares, (values[:-1] + values[1:]) / 2, out_int32=True).view(-1, 2)
    return (16 * codes[:, 0] + codes[:, 1]).to(torch.uint8), scales


def dequantise(codes: Tensor, scales: Tensor, pairs: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The weight of a shape that `quantise` gave codes and scales for.

    Args:
        pairs: (256, 2) what each code means.
    """
    values = pairs.index_select(0, codes.int()).view(-1, BLOCK).mul_(scales.float()[:, None])
    return values.to(dtype).flatten()[: shape.numel()].view(shape)


class _Product(torch.autograd.Function):
    """x W^T + b, where the backward pass keeps the codes of W, and makes W of them again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: tuple[Any, ...], bias: Tensor | None, turned: bool) -> Tensor:
        codes, scales, pairs, shape = weight
        ctx.save_for_backward(codes, scales, pairs)
        ctx.shape, ctx.turned = shape, turned
        found = dequantise(codes, scales, pairs, shape, x.dtype)
        return F.linear(x, found.T if turned else found, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales, pairs = ctx.saved_tensors
        found = dequantise(codes, scales, pairs, ctx.shape, grad_outputs[0].dtype)
        return grad_outputs[0] @ (found.T if ctx.turned else found), None, None, None


class FourBitMap(nn.Module):
    """A linear map whose weight, which is not trained, is kept in 4.25 bits.

    Args:
        plain: an `nn.Linear` or GPT-2's `Conv1D`, which loses its weight; its bias stays, and is frozen.
    """

    codes: Tensor
    scales: Tensor
    pairs: Tensor

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.shape, self.dtype = plain.weight.shape, plain.weight.dtype
        self.turned = not isinstance(plain, nn.Linear)  # Conv1D holds (inputs, outputs)
        codes, scales = quantise(plain.weight)
        plain.weight = None
        self.plain = plain.requires_grad_(False)
        first, second = torch.meshgrid(*2 * [torch.tensor(NF4, device=codes.device)], indexing="ij")
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("pairs", torch.stack([first, second], -1).view(-1, 2))

    @property
    def bias(self) -> Tensor | None:
        """Of the map."""
        return self.plain.bias

    @property
    def weight(self) -> Tensor:
        """It is made anew for whoever asks."""
        return dequantise(self.codes, self.scales, self.pairs, self.shape, self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(compute_dtype(x))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return _Product.apply(x, (self.codes, self.scales, self.pairs, self.shape), bias, self.turned)

    def spread_out(self) -> nn.Module:
        """The plain map again, with the weight that the 4 bits mean."""
        self.plain.weight = nn.Parameter(self.weight, requires_grad=False)
        return self.plain


def four_bit_maps(model: nn.Module) -> list[FourBitMap]:
    """Those of a model."""
    return [module for module in model.modules() if isinstance(module, FourBitMap)]


def keep_in_four_bits(model: nn.Module, maps: Iterable[nn.Module]) -> None:
    """Put a `FourBitMap` in the place of each of some linear maps inside a model."""
    _exchange(model, {id(plain): FourBitMap(plain) for plain in maps})


def spread_out(model: nn.Module) -> None:
    """Undo it, but for what 4 bits lost: the weights are those that adapters were trained upon."""
    _exchange(model, {id(narrow): narrow.spread_out() for narrow in four_bit_maps(model)})


def _exchange(model: nn.Module, found: dict[int, nn.Module]) -> None:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if id(child) in found and not isinstance(module, FourBitMap):
                setattr(module, name, found[id(child)])
