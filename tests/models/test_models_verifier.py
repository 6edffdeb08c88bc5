"""The encoder against its definition: what sees what, what padding does, and a reference written plainly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.rope import NoRope
from modern_llm.models.config import GQAConfig
from modern_llm.models.recomputing import HostMemory
from modern_llm.models.verifier import VerifierModel
from modern_llm.models.verifier_config import VerifierConfig

LABELS = ["wrong", "right"]


@pytest.fixture
def encoder(loud: Callable[..., nn.Module]) -> Callable[..., VerifierModel]:
    def build(**settings: Any) -> VerifierModel:
        shape = {"vocab_size": 61, "max_seq_len": 24, "d_model": 32, "n_layers": 2, "ffn_hidden_size": 40}
        model = VerifierModel(VerifierConfig(**(shape | {"gqa": GQAConfig(2)} | settings)), LABELS)
        loud(model)
        return model

    return build


def test_every_token_sees_what_stands_behind_it(encoder: Callable[..., VerifierModel], token_ids: Any) -> None:
    model, ids = encoder(), token_ids(1, 9)
    other = ids.clone()
    other[0, -1] = (ids[0, -1] + 1) % 61
    with torch.no_grad():
        change = model.hidden_states(ids) - model.hidden_states(other)
    assert float(change[0, 0].abs().max()) > 1e-3


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("rope", [None, NoRope()])
def test_padding_changes_nothing(
    encoder: Callable[..., VerifierModel], token_ids: Any, pooling: str, rope: Any
) -> None:
    """A text alone, and the same beside a longer one, with any id at the padding."""
    model = encoder(pooling=pooling, **({} if rope is None else {"rope": rope})).double()
    text, long = token_ids(1, 6), token_ids(1, 14, seed=2)
    alone = model.logits(text, torch.tensor([5]))
    for fill in (0, 33):
        batch = torch.cat([F.pad(text, (0, 8), value=fill), long])
        together = model.logits(batch, torch.tensor([5, 13]))
        torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-6)


def test_padding_on_the_left_changes_no_state(encoder: Callable[..., VerifierModel], token_ids: Any) -> None:
    model, text = encoder(), token_ids(1, 6)
    mask = torch.tensor([[0] * 5 + [1] * 6])
    states = model.hidden_states(F.pad(text, (5, 0), value=7), mask)[:, 5:]
    torch.testing.assert_close(states, model.hidden_states(text), atol=1e-5, rtol=1e-5)


def test_it_is_the_encoder_that_the_formulas_say(encoder: Callable[..., VerifierModel], token_ids: Any) -> None:
    """softmax(q k^T / sqrt(D)) v without any mask, and everything around it, written plainly in float64."""
    model = encoder(qk_norm=True, qkv_bias=True).double()
    ids = token_ids(2, 7)
    H, D = 4, 8

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def turned(x: Tensor) -> Tensor:  # (B, T, h, D)
        angle = torch.arange(7).double()[:, None] * 10000.0 ** (-torch.arange(0, D, 2).double() / D)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        y = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    x = model.embedding(ids)
    for block in model.blocks:
        attention: Any = block.attention
        project = attention.qkv_proj
        qkv = norm(x, block.attention_norm.weight) @ project.weight.T + project.bias
        q, k, v = qkv.view(2, 7, H + 4, D).split([H, 2, 2], dim=2)
        q, k = turned(norm(q, attention.q_norm.weight)), turned(norm(k, attention.k_norm.weight))
        k, v = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
        weights = (torch.einsum("bthd,bshd->bhts", q, k) / D**0.5).softmax(-1)
        x = x + torch.einsum("bhts,bshd->bthd", weights, v).reshape(2, 7, -1) @ attention.o_proj.weight.T
        x = x + block.ffn(norm(x, block.ffn_norm.weight))
    states = norm(x, model.final_norm.weight)
    torch.testing.assert_close(model.hidden_states(ids), states, atol=1e-5, rtol=1e-5)
    means = torch.stack([states[0].mean(0), states[1].mean(0)])
    torch.testing.assert_close(
        model.logits(ids, torch.tensor([6, 6])), means @ model.score.weight.T, atol=1e-5, rtol=1e-5
    )


def test_pooling_takes_real_tokens_alone(encoder: Callable[..., VerifierModel]) -> None:
    hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([2, 4])
    expected = torch.stack([hidden[0, :3].mean(0), hidden[1].mean(0)])
    torch.testing.assert_close(encoder().pooled(hidden, last), expected)
    assert torch.equal(encoder(pooling="first").pooled(hidden, last), hidden[:, 0])


def test_checkpointing_changes_no_gradient(encoder: Callable[..., VerifierModel], token_ids: Any) -> None:
    gradients = []
    for on, memory in ((False, None), (True, None), (True, HostMemory(torch.device("cpu")))):
        model = encoder(dropout=0.0).train()
        model.activation_checkpointing, model.host_memory = on, memory
        model.logits(token_ids(3, 8), torch.tensor([7, 3, 5])).square().sum().backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], others[name]) for others in gradients[1:] for name in gradients[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "model.pooling='max': is unknown. Use mean or first"),
        ({"n_heads": 5}, "model.n_heads=5: must divide model.d_model=256"),
        ({"n_heads": 4, "gqa": GQAConfig(3)}, "model.gqa.group_size=3: must divide"),
        ({"dropout": 1.0}, "model.dropout=1.0: must lie in [0, 1)"),
    ],
)
def test_impossible_configurations(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        VerifierConfig(**settings)


def test_a_vocabulary_that_is_unknown_or_too_small() -> None:
    with pytest.raises(ValueError, match="not known yet"):
        VerifierModel(VerifierConfig(), LABELS)
    with pytest.raises(ValueError, match=r"model\.vocab_size=9: is smaller than the tokenizer's 10 ids"):
        VerifierConfig(vocab_size=9).with_vocab_size(10)
    assert VerifierConfig().with_vocab_size(10).vocab_size == 10
