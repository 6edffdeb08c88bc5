"""Initial weights: what a model begins with where it differs from another in one part."""

from __future__ import annotations

import pytest
import torch

from modern_llm.models.attention.sinks import LearnableSinks
from modern_llm.models.config import ModernLLMConfig, MoEConfig
from modern_llm.models.transformer import ModernDecoderLM

SIZES = {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 16}


def _weights(**changes: object) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(ModernDecoderLM(ModernLLMConfig(**{**SIZES, **changes})).named_parameters())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "own"),
    [
        ({"sinks": LearnableSinks(num_sinks=2)}, ["sink"]),
        ({"moe": MoEConfig(n_experts=4, top_k=2)}, ["ffn"]),
        ({"n_layers": 3}, ["blocks.2.", "o_proj", "down_proj"]),  # these are smaller in a deeper model
        ({"tie_embeddings": False}, ["head"]),
    ],
)
def test_models_that_differ_in_one_part_begin_alike_everywhere_else(changes: dict[str, object], own: list[str]) -> None:
    plain, other = _weights(), _weights(**changes)
    differing = [*own, "embedding.weight"]  # tied, it is the head
    shared = [name for name in plain if name in other and not any(part in name for part in differing)]
    assert len(shared) >= 6
    for name in shared:
        assert torch.equal(plain[name], other[name]), name


def test_a_seed_gives_a_model_again_and_another_seed_another() -> None:
    one, again = _weights(), _weights()
    assert all(torch.equal(one[name], again[name]) for name in one)
    torch.manual_seed(4)
    other = dict(ModernDecoderLM(ModernLLMConfig(**SIZES)).named_parameters())  # type: ignore[arg-type]
    drawn = [name for name, weight in one.items() if weight.ndim == 2 and weight.std() > 0]
    assert not any(torch.equal(one[name], other[name]) for name in drawn)


def test_layers_do_not_begin_alike() -> None:
    weights = _weights()
    first = {name: weight for name, weight in weights.items() if name.startswith("blocks.0.") and weight.ndim == 2}
    for name, weight in first.items():
        if weight.std() > 0:
            assert not torch.equal(weight, weights[name.replace("blocks.0.", "blocks.1.")]), name
