"""Packed documents against each document alone."""

from __future__ import annotations

import pytest
import torch
from parts import ALL, PARTS, UNLIKE_LAYERS
from torch.nn import functional as F

from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import NoRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig

MODELS = {
    "plain": {},
    "gqa moe": {"group_size": 2, "moe": MoEConfig(4, 2)},
    "nope": {"rope": NoRope()},
    "sliding": {"sliding_window": 4},
    "learnable": {"use_attention_sinks": True, "sinks": LearnableSinks(window=4, num_sinks=2)},
    "learnable wide": {"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=2)},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=4), "group_size": 2},
    "streaming": {"use_attention_sinks": True, "sinks": StreamingSinks(window=4, num_sinks=2)},
    "streaming wide": {"use_attention_sinks": True, "sinks": StreamingSinks(num_sinks=2)},
    **{f"with {name}": settings for name, settings in PARTS.items()},
    "short and long": {"n_layers": 3, "layers": LayerPattern("SL", 4)},
    "some without positions": {"n_layers": 3, "layers": LayerPattern(rotary="RN")},
    **UNLIKE_LAYERS,
    "all parts": {"n_layers": 3, "group_size": 2, "use_attention_sinks": True, "sinks": SinkLogits(window=4), **ALL},
}
# One document longer than the window and the kept tokens, short ones, and one of a single token.
LENGTHS = [[3, 11, 1, 5], [9, 2, 2, 7]]


def _document_ids() -> torch.Tensor:
    numbers = torch.tensor([2, 0, 3, 1])  # in no order: only a change of number means anything
    return torch.stack([numbers.repeat_interleave(torch.tensor(lengths)) for lengths in LENGTHS])


@pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)
@torch.no_grad()
def test_packed_logits_equal_each_document_alone(tiny, token_ids, settings):
    model, ids = tiny(**settings), token_ids(2, 20)
    packed = model(ids, document_ids=_document_ids()).logits
    for row, lengths in enumerate(LENGTHS):
        for text, got in zip(ids[row].split(lengths), packed[row].split(lengths), strict=True):
            torch.testing.assert_close(got, model(text[None]).logits[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_padding_behind_the_last_document(tiny, token_ids):
    model, ids = tiny(**MODELS["learnable"]), token_ids(2, 20)
    mask = torch.arange(20) < torch.tensor([[18], [20]])
    packed = model(ids, document_ids=_document_ids(), attention_mask=mask.long()).logits
    assert packed.isfinite().all()
    torch.testing.assert_close(packed[0, 15:18], model(ids[:1, 15:18]).logits[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed[1, 13:], model(ids[1:, 13:]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["sliding", "learnable", "logits", "streaming"])
def test_packed_gradients_equal_the_sum_over_documents(tiny, token_ids, name):
    model, ids, labels = tiny(**MODELS[name]), token_ids(2, 20), token_ids(2, 20, seed=2)
    packed = model(ids, document_ids=_document_ids()).logits
    F.cross_entropy(packed.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    got = {key: p.grad.clone() for key, p in model.named_parameters()}
    model.zero_grad()
    for row, lengths in enumerate(LENGTHS):
        for text, goal in zip(ids[row].split(lengths), labels[row].split(lengths), strict=True):
            F.cross_entropy(model(text[None]).logits[0], goal, reduction="sum").backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 1e-3, key
        torch.testing.assert_close(got[key], parameter.grad, atol=2e-3, rtol=1e-3, msg=lambda m, key=key: f"{key}: {m}")
