"""Frozen maps in 4 bits under adapters: codes by hand, products against plain maps, and runs that go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modern_llm.pretrained.four_bits import BLOCK, NF4, FourBitMap, dequantise, four_bit_maps, quantise
from modern_llm.pretrained.settings import LoRA


def test_the_codes_are_quantiles_of_a_normal_distribution() -> None:
    """As the paper's authors make them: 8 above 0 and 7 below, as far apart in probability, the largest 1."""

    def tail(count: int) -> torch.Tensor:
        return torch.special.ndtri(torch.linspace(0.9677083, 0.5, count, dtype=torch.float64)[:-1])

    values = torch.cat([tail(9), torch.zeros(1), -tail(8)]).sort().values
    torch.testing.assert_close(torch.tensor(NF4, dtype=torch.float64), values / values.max(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(48, 64), (7, 33)])
def test_every_weight_becomes_the_nearest_number_of_its_block(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight[0] = 0
    plain = FourBitMap(_linear(weight))
    assert plain.codes.dtype == torch.uint8
    assert plain.codes.numel() == -(-weight.numel() // BLOCK) * BLOCK // 2
    found, kept = plain.weight.flatten(), weight.bfloat16().float().flatten()
    for start in range(0, kept.numel(), BLOCK):
        block = kept[start : start + BLOCK]
        choices = torch.tensor(NF4) * block.abs().max()
        nearest = choices[(block[:, None] - choices).abs().argmin(1)]
        assert torch.equal(found[start : start + BLOCK], nearest)
    same = quantise(weight.bfloat16())
    assert torch.equal(same[0], plain.codes)
    assert torch.equal(same[1], plain.scales)
    again = quantise(plain.weight)
    assert torch.equal(dequantise(*again, plain.pairs, weight.shape, torch.float32), plain.weight)


def _linear(weight: torch.Tensor, bias: bool = True) -> nn.Linear:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias)
    plain.weight.data = weight
    return plain


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("half", [False, True])
def test_a_map_and_its_gradient_are_those_of_the_plain_one(kind: str, half: bool) -> None:
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(0)
    plain: Any = _linear(torch.randn(24, 40)) if kind == "linear" else Conv1D(24, 40)
    plain.bias.data.normal_()
    narrow = FourBitMap(plain)
    dense: Any = nn.Linear(40, 24) if kind == "linear" else Conv1D(24, 40)
    dense.weight.data, dense.bias.data = narrow.weight, narrow.bias
    outcomes = []
    for module in (narrow, dense):
        x = torch.randn(3, 5, 40, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = module(x)
        (out.float().square().sum()).backward()
        outcomes.append((out, x.grad))
    tolerance = {"atol": 0.1, "rtol": 2e-2} if half else {"atol": 1e-4, "rtol": 1e-5}
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)
    assert torch.equal(narrow.spread_out().weight, dense.weight)


def test_the_backward_pass_keeps_codes_alone() -> None:
    narrow, kept = FourBitMap(_linear(torch.randn(256, 256))), []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        narrow(torch.randn(1, 256, requires_grad=True))
    assert sum(kept) == 256 * 256 // 2 + 256 * 256 // BLOCK * 2 + narrow.pairs.numel() * 4


@pytest.mark.parametrize("kind", ["gpt2", "llama", "t5", "own"])
def test_adapters_lie_on_maps_in_four_bits(load: Any, kind: str) -> None:
    plain = load(kind, lora=LoRA(rank=2, dropout=0.0))
    loaded = load(kind, lora=LoRA(rank=2, dropout=0.0, base_bits=4))
    assert loaded.parameter_counts() == plain.parameter_counts()
    assert loaded.weights_hash() != plain.weights_hash()
    assert len(four_bit_maps(loaded.model)) == len([n for n, _ in plain.model.named_parameters() if "lora_A" in n])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    ids = torch.arange(1, 25).view(2, 12)

    def states() -> torch.Tensor:
        if loaded.is_seq2seq:
            return loaded.model.decoder_states(loaded.model.encode(ids, torch.ones_like(ids)), ids)
        return loaded.model.hidden_states(ids).hidden

    adapted = states()
    adapted.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in loaded.model.parameters() if p.requires_grad)
    with torch.no_grad(), loaded.decoding():
        torch.testing.assert_close(states(), adapted, atol=1e-3, rtol=1e-3)
    merged = loaded.merged()
    assert not four_bit_maps(merged.model)
    torch.testing.assert_close(states(), adapted, atol=1e-3, rtol=1e-3)
    assert all(p.requires_grad for p in merged.model.parameters())


def test_only_adapted_or_not_every_map_is_narrow(load: Any) -> None:
    every = load("own", lora=LoRA(base_bits=4))
    some = load("own", lora=LoRA(base_bits=4, targets=["qkv_proj"]))
    assert len(four_bit_maps(some.model)) == len(four_bit_maps(every.model))
    assert some.model.hidden_states(torch.arange(8)[None]).hidden.isfinite().all()
