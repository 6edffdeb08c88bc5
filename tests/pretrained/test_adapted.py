"""Adapted linear maps against peft's own."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from modern_llm.pretrained.adapted import AdaptedLinear, compute_adapted

KINDS = {"map": False, "map with bias": True, "Conv1D": None}


def _adapted(bias: bool | None, dropout: float, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Conv1D(24, 16) if bias is None else nn.Linear(16, 24, bias)).to(dtype)
    config = LoraConfig(r=4, lora_alpha=6, lora_dropout=dropout, target_modules=["1"], fan_in_fan_out=bias is None,
                        init_lora_weights=False)  # fmt: skip
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def _gradients(model: Any, x: Tensor, half: bool) -> list[Tensor]:
    x = x.detach().requires_grad_()
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext():
        out = model(x)
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    found = [out.detach(), x.grad, *(p.grad for p in trained)]
    for p in trained:
        p.grad = None
    return [t for t in found if t is not None]


@pytest.mark.parametrize("bias", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_output_and_gradients_are_those_of_peft(bias: bool | None, dropout: float) -> None:
    model, x = _adapted(bias, dropout, torch.float64), torch.randn(3, 5, 16, dtype=torch.float64)
    expected = _gradients(model, x, half=False)
    compute_adapted(model)
    assert any(type(module) is AdaptedLinear for module in model.modules())
    torch.testing.assert_close(_gradients(model, x, half=False), expected)
    with model.disable_adapter():
        assert torch.equal(model(x), model.base_model.model[1].base_layer(model.base_model.model[0](x)))
    model.merge_adapter()
    merged = model.eval()(x)
    model.unmerge_adapter()
    torch.testing.assert_close(merged, model(x))


def test_16_bits_cost_no_more_than_they_cost_peft() -> None:
    model, x = _adapted(True, 0.0, torch.float32), torch.randn(64, 5, 16)
    exact = _gradients(model, x, half=False)
    model.base_model.model[1].base_layer.bfloat16()
    theirs = _gradients(model, x, half=True)
    compute_adapted(model)
    ours = _gradients(model, x, half=True)
    for name, right, other, own in zip(("out", "x", "A", "B"), exact, theirs, ours, strict=True):
        assert own.dtype == other.dtype, name
        assert (own - right).norm() < 1.2 * (other - right).norm() < 0.1 * right.norm(), name
