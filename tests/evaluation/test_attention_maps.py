"""Attention probabilities against transformers' own, and against the outputs that they must give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_models import byte_tokenizer, make_model

from modern_llm.evaluation.attention_maps import AttentionMaps, attention_maps, token_labels
from modern_llm.models import ModernDecoderLM, ModernLLMConfig, from_hugging_face
from modern_llm.models.attention.plan import plan_attention
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import GQAConfig
from modern_llm.models.initialisation.gpt2 import GPT2Init

IDS = torch.randint(1, 50, (20,), generator=torch.Generator().manual_seed(1)).tolist()
SINKS: dict[str, Any] = {
    "learnable": LearnableSinks(8, 2),
    "logits": SinkLogits(8),
    "streaming": StreamingSinks(8, 3),
    "whole": LearnableSinks(None, 2),
}


def decoder(kind: str, **settings: Any) -> ModernDecoderLM:
    torch.manual_seed(0)
    if kind in SINKS:
        settings |= {"sinks": SINKS[kind], "use_attention_sinks": True}
    config = ModernLLMConfig(
        vocab_size=50,
        max_seq_len=24,
        d_model=32,
        n_layers=2,
        n_heads=4,
        gqa=GQAConfig(2),
        init=GPT2Init(0.4),
        **settings,
    )
    return ModernDecoderLM(config).eval()


def test_an_imported_llama_attends_as_transformers_says() -> None:
    theirs = make_model("llama")
    ours = from_hugging_face(theirs)
    expected = attention_maps(theirs, IDS).weights
    torch.testing.assert_close(attention_maps(ours, IDS).weights, expected, atol=1e-5, rtol=1e-4)
    assert expected.shape == (2, 4, 20, 20)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_of_transformers_is_left_as_it_was(kind: str) -> None:
    model = make_model(kind)
    before = (model.config._attn_implementation, model(torch.tensor([IDS])).logits)
    maps = attention_maps(model, IDS)
    assert model.config._attn_implementation == before[0]
    torch.testing.assert_close(model(torch.tensor([IDS])).logits, before[1])
    torch.testing.assert_close(maps.weights.sum(-1), torch.ones(2, 4, 20))
    assert (maps.weights.triu(1) == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["none", "window", *SINKS])
@pytest.mark.parametrize("settings", [{"qk_norm": False}, {"qk_norm": True}, {"attention_softcap": 0.5}])
def test_the_weights_times_the_values_are_what_the_layer_gives(kind: str, settings: dict[str, Any]) -> None:
    """Sinks included: the learned ones with their own values, logits with none."""
    model = decoder(kind, **settings, **({"sliding_window": 8} if kind == "window" else {}))
    attention: Any = model.blocks[0].attention
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(2))
    plan = plan_attention(model.config.views[0], model.rotary, 20)
    weights = attention.weights(x, plan)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 4, 20))
    values = attention.qkv_proj(x)[..., -16:].view(1, 20, 2, 8)
    if kind in ("learnable", "whole"):
        values = torch.cat([attention.sinks.values[None], values], 1)
    elif kind == "logits":
        values = torch.cat([torch.zeros(1, 1, 2, 8), values], 1)
    values = values.repeat_interleave(2, dim=2)
    expected = attention.o_proj(torch.einsum("bhtn,bnhd->bthd", weights, values).flatten(2))
    torch.testing.assert_close(attention(x, plan), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "sinks", "kept"), [("none", 0, 1), ("learnable", 2, 1), ("logits", 1, 1), ("streaming", 0, 3)]
)
def test_columns_of_sinks_are_counted(kind: str, sinks: int, kept: int) -> None:
    maps = attention_maps(decoder(kind), IDS)
    assert (maps.n_sinks, maps.kept_tokens) == (sinks, kept)
    assert maps.weights.shape == (2, 4, 20, 20 + sinks)
    by_hand = maps.weights[1, 2, kept:, : sinks + kept].sum(-1).mean()
    assert float(maps.sink_mass()[1, 2]) == pytest.approx(float(by_hand))


def test_entropy_of_known_distributions() -> None:
    even, sharp = torch.full((1, 1, 4, 4), 0.25), torch.eye(4)[None, None]
    entropies = AttentionMaps(torch.cat([even, sharp], 1), 0).entropy()
    assert entropies[0].tolist() == pytest.approx([torch.tensor(4.0).log().item(), 0.0])


def test_labels_show_blanks_and_parts_of_characters() -> None:
    tokenizer = byte_tokenizer()
    labels = token_labels(tokenizer, [*tokenizer.encode("a \né"), tokenizer.eos_id])
    assert labels == ["a", "␣", "↵", "⟨Ã⟩", "⟨©⟩", "⟨<|endoftext|>⟩"]
