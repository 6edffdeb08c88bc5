"""Adapted maps while texts are written, against peft's own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_models import NAMES, byte_tokenizer
from torch import Tensor

from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.pretrained.loaded import LoadedModel, OwnDecoder
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import FullFinetuning, LoRA, PretrainedModel


def adapted(kind: str, mirror: Path) -> LoadedModel:
    """A model whose adapters change what it says."""
    if kind == "own":
        shape = ModernLLMConfig(vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)
        loaded: LoadedModel = OwnDecoder.of(ModernDecoderLM(shape), byte_tokenizer(), "own")
    else:
        loaded = load_hugging_face(PretrainedModel(NAMES[kind], FullFinetuning()), str(mirror))
    loaded = loaded.with_lora(LoRA(rank=2, alpha=4))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    loaded.model.eval()
    return loaded


@pytest.mark.parametrize("kind", ["gpt2", "llama", "own"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_texts_are_written_by_the_policy_that_is_trained(hub: Path, kind: str, precision: str) -> None:
    loaded = adapted(kind, hub)
    ids = torch.arange(1, 25).view(2, 12)
    before = {name: parameter.clone() for name, parameter in loaded.model.named_parameters()}

    def logits() -> Tensor:
        return loaded.decoder.output_head.logits(loaded.decoder.hidden_states(ids).hidden)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = logits()
        with loaded.untrained():
            plain = logits()
        with loaded.decoding():
            found = logits()
        again = logits()
    assert (expected - plain).abs().max() > 0.05
    if precision == "bf16":  # the same roundings
        assert torch.equal(found, expected)
    else:
        assert torch.allclose(found, expected, rtol=0, atol=2e-5)
    assert torch.equal(again, expected)
    assert all(torch.equal(before[name], parameter) for name, parameter in loaded.model.named_parameters())
