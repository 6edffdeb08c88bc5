"""Inputs of recomputed blocks in the host's memory: whether they leave the device, and come back as they were."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.recomputing import HostMemory, recomputed
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware


def passed(x: Tensor, blocks: int, memory: HostMemory | None) -> tuple[Tensor, list[weakref.ref[Tensor]]]:
    """What a stack of blocks makes of x, and what each was given."""
    inputs = []

    def block(x: Tensor, factor: float) -> Tensor:
        return (x * factor).sin().exp()

    for number in range(blocks):
        inputs.append(weakref.ref(x))
        x = recomputed(block, x, 1.0 + number, memory=memory)
    return x, inputs


def test_inputs_leave_the_device_and_come_back() -> None:
    start = torch.linspace(-1, 1, 12)
    gradients = []
    for memory in (None, HostMemory(torch.device("cpu"))):
        leaf = start.clone().requires_grad_()
        out, inputs = passed(leaf * 1, 4, memory)
        assert [given() is not None for given in inputs] == [memory is None] * 4
        out.sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(gradients[0], gradients[1])  # type: ignore[arg-type]


def test_passes_that_nobody_follows_back_are_forgotten() -> None:
    memory, leaf = HostMemory(torch.device("cpu")), torch.linspace(-1, 1, 12).requires_grad_()
    first, _ = passed(leaf * 1, 3, memory)
    abandoned, _ = passed(leaf * 2, 3, memory)
    del abandoned
    second, _ = passed(leaf * 3, 3, memory)
    second.sum().backward()  # another order than that of the passes
    first.sum().backward()
    found, leaf.grad = leaf.grad, None
    for factor in (3, 1):
        passed(leaf * factor, 3, None)[0].sum().backward()
    assert torch.equal(found, leaf.grad)  # type: ignore[arg-type]


def test_an_input_that_needs_no_gradient_comes_back_needing_none() -> None:
    memory, weight = HostMemory(torch.device("cpu")), torch.ones(3, requires_grad=True)
    x = torch.arange(3.0)
    recomputed(lambda x, w: (x * w).sin(), x, weight, memory=memory).sum().backward()
    assert torch.allclose(weight.grad, x * x.cos())  # type: ignore[arg-type]
    assert x.grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "activation_offloading=True: moves what recomputed blocks keep, and none is recomputed. "
             "Add hardware.activation_checkpointing=true"),
        ({"activation_checkpointing": 2, "compile": "whole"}, "works between blocks.* Use hardware.compile=true"),
    ],
)  # fmt: skip
def test_what_cannot_be_offloaded_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hardware(device="cuda", activation_offloading=True, **settings)


def test_a_cpu_has_nowhere_to_offload_to() -> None:
    hardware = Hardware(device="cpu", precision="fp32", activation_checkpointing=True, activation_offloading=True)
    with pytest.raises(ValueError, match=r"activation_offloading=true: .* this is cpu\. Set it to false"):
        Runtime(hardware).prepare(ModernDecoderLM(ModernLLMConfig(vocab_size=8, d_model=8, n_layers=1, n_heads=2)))
