"""The three kinds of attention sinks against references that compute every softmax by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention

from modern_llm.models.attention.layer import Attention
from modern_llm.models.attention.plan import plan_attention
from modern_llm.models.attention.rope import NoRope, PlainRope, YarnRope
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks

GROUPS = [1, 2, 4]
TOLERANCE = 1e-5  # everything runs in float64 but the tables of angles, which are fp32


def _turned(x: Tensor, position: int | Tensor, theta: float = 10000.0) -> Tensor:
    """Rotate x (..., D) as complex numbers x_i + i x_{i + D/2} by `position` (broadcast against ...) tokens."""
    half = x.shape[-1] // 2
    speed = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.as_tensor(position, dtype=torch.float64)[..., None] * speed
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1)


def _heads(attention: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Unrotated queries, keys and values (B, H, T, D), keys and values repeated for every query head."""
    B, T, _ = x.shape
    H, kv, D = attention.n_heads, attention.n_kv_heads, attention.head_dim
    weight = attention.qkv_proj.weight.split([H * D, kv * D, kv * D])
    q, k, v = ((x @ w.T).view(B, T, -1, D).transpose(1, 2) for w in weight)
    return q, k.repeat_interleave(H // kv, 1), v.repeat_interleave(H // kv, 1)


def _attention(tiny, **settings) -> SimpleNamespace:
    """One attention module in float64, and what runs it on x (B, T, d)."""
    model = tiny(use_attention_sinks=True, **settings).double()
    attention, config = model.blocks[0].attention, model.config
    rotary = Rotary(config.rope, config.head_size, config.max_seq_len)
    rotary.cos, rotary.sin = rotary.cos.double(), rotary.sin.double()

    def run(x: Tensor) -> Tensor:
        return attention(x, plan_attention(config.views[0], rotary, x.shape[1]))

    return SimpleNamespace(module=attention, config=config, run=run)


def _hidden(tokens: int) -> Tensor:
    x = torch.randn(2, tokens, 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return x.requires_grad_()


def _assert_same_values_and_gradients(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)
    cotangent = torch.randn(got.shape, generator=torch.Generator().manual_seed(4), dtype=got.dtype)
    ours = torch.autograd.grad(got, inputs, cotangent)
    reference = torch.autograd.grad(expected, inputs, cotangent)
    for one, other in zip(ours, reference, strict=True):
        assert other.abs().max() > 1e-3  # a gradient of zero would agree with anything
        torch.testing.assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("group_size", GROUPS)
def test_sink_logits_agree_with_gpt_oss(tiny, group_size):
    """Values, and gradients of the input, the projections and the sinks."""
    case = _attention(tiny, sinks=SinkLogits(), group_size=group_size)
    ours, x = case.module, _hidden(20)
    theirs = GptOssAttention(
        GptOssConfig(
            hidden_size=32,
            num_attention_heads=4,
            num_key_value_heads=4 // group_size,
            head_dim=8,
            num_hidden_layers=2,
            layer_types=["full_attention"] * 2,
            attention_bias=False,
            attn_implementation="eager",
        ),
        layer_idx=0,
    ).double()
    kv = 32 // group_size
    with torch.no_grad():
        parts = ours.qkv_proj.weight.split([32, kv, kv])
        for name, part in zip("qkv", parts, strict=True):
            getattr(theirs, f"{name}_proj").weight.copy_(part)
        theirs.o_proj.weight.copy_(ours.o_proj.weight)
        theirs.sinks.copy_(ours.sinks.logits)
    angle = torch.outer(torch.arange(20.0, dtype=torch.float64), 10000.0 ** (-torch.arange(4.0).double() / 4))
    causal = torch.full((20, 20), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    got = case.run(x)
    expected = theirs(x, (angle.cos()[None], angle.sin()[None]), causal)[0]
    torch.testing.assert_close(got, expected, atol=TOLERANCE, rtol=TOLERANCE)
    cotangent = torch.randn(got.shape, generator=torch.Generator().manual_seed(4), dtype=got.dtype)
    mine = torch.autograd.grad(got, [ours.sinks.logits, x, ours.qkv_proj.weight], cotangent)
    projections = [getattr(theirs, f"{name}_proj").weight for name in "qkv"]
    other = torch.autograd.grad(expected, [theirs.sinks, x, *projections], cotangent)
    assert other[0].abs().min() > 1e-3
    torch.testing.assert_close(mine[0], other[0], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(mine[1], other[1], atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(mine[2], torch.cat(other[2:]), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("window", [24, 5], ids=["everything", "window"])
def test_sink_logits_agree_with_a_dense_softmax(tiny, group_size, window):
    case = _attention(tiny, sinks=SinkLogits(window=window), group_size=group_size)
    x, D, T = _hidden(16), 8, 16
    q, k, v = _heads(case.module, x)
    index = torch.arange(T)
    scores = _turned(q, index) @ _turned(k, index).mT / math.sqrt(D)  # (B, H, T, T)
    distance = index[:, None] - index
    scores = scores.exp() * ((distance >= 0) & (distance < window))
    chance = scores / (scores.sum(-1, keepdim=True) + case.module.sinks.logits.exp()[:, None, None])
    expected = case.module.o_proj((chance @ v).transpose(1, 2).flatten(2))
    _assert_same_values_and_gradients(case.run(x), expected, [x, case.module.sinks.logits])


def _dense_learnable(case: SimpleNamespace, x: Tensor, window: int, theta: float | None) -> Tensor:
    """Sinks before the text with an explicit mask; a sink is seen from at most window - 1 tokens away."""
    q, k, v = _heads(case.module, x)
    repeats = case.module.n_heads // case.module.n_kv_heads
    sink_k, sink_v = (s.transpose(0, 1).repeat_interleave(repeats, 0) for s in
                      (case.module.sinks.keys, case.module.sinks.values))  # (H, S, D)  # fmt: skip
    index = torch.arange(x.shape[1])
    if theta is None:
        to_text, to_sinks = q @ k.mT, q @ sink_k.mT
    else:
        to_text = _turned(q, index, theta) @ _turned(k, index, theta).mT
        to_sinks = _turned(q, index.clamp(max=window - 1), theta) @ sink_k.mT
    distance = index[:, None] - index
    hidden = torch.cat([torch.zeros(len(index), sink_k.shape[1]).bool(), (distance < 0) | (distance >= window)], 1)
    scores = torch.cat([to_sinks, to_text], -1) / math.sqrt(q.shape[-1])
    chance = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    values = torch.cat([sink_v.expand(len(x), -1, -1, -1), v], 2)
    return case.module.o_proj((chance @ values).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("num_sinks", [1, 3])
@pytest.mark.parametrize(
    ("window", "theta"), [(24, 10000.0), (5, 10000.0), (5, None)], ids=["everything", "window", "window-nope"]
)
def test_learnable_sinks_agree_with_a_dense_softmax(tiny, group_size, num_sinks, window, theta):
    rope = NoRope() if theta is None else PlainRope(theta)
    case = _attention(tiny, sinks=LearnableSinks(window, num_sinks), group_size=group_size, rope=rope)
    x = _hidden(16)
    inputs = [x, case.module.sinks.keys, case.module.sinks.values, case.module.qkv_proj.weight]
    _assert_same_values_and_gradients(case.run(x), _dense_learnable(case, x, window, theta), inputs)


def _streamed(case: SimpleNamespace, x: Tensor, window: int, kept: int, theta: float | None) -> Tensor:
    """Query by query: gather the kept tokens and the window, number what is held 0 .. n-1, and attend to it."""
    q, k, v = _heads(case.module, x)
    rows = []
    for i in range(x.shape[1]):
        held = [j for j in range(i + 1) if j < kept or i - j < window]
        place = torch.arange(len(held))
        query, keys = q[:, :, i : i + 1], k[:, :, held]  # (B, H, 1, D), (B, H, n, D)
        if theta is not None:
            query, keys = _turned(query, place[-1:], theta), _turned(keys, place, theta)
        rows.append((query @ keys.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v[:, :, held])
    return case.module.o_proj(torch.cat(rows, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(("window", "kept"), [(5, 3), (2, 1), (7, 4)])
@pytest.mark.parametrize("theta", [10000.0, None], ids=["plain", "nope"])
def test_streaming_sinks_agree_with_attention_inside_the_cache(tiny, group_size, window, kept, theta):
    rope = NoRope() if theta is None else PlainRope(theta)
    case = _attention(tiny, sinks=StreamingSinks(window, kept), group_size=group_size, rope=rope)
    x = _hidden(20)
    expected = _streamed(case, x, window, kept, theta)
    _assert_same_values_and_gradients(case.run(x), expected, [x, case.module.qkv_proj.weight])


def test_yarn_scale_reaches_the_sinks(tiny):
    """YaRN scales queries and keys of the text, but only the query side of a learned key, which is not rotated."""
    scale, window = 1.3, 5
    rope = YarnRope(attention_scale=scale, factor=1.0)  # a factor of 1 leaves every frequency alone
    learned = _attention(tiny, sinks=LearnableSinks(window, 2), rope=rope)
    x = _hidden(16)
    with torch.no_grad():
        got = learned.run(x)
        learned.module.qkv_proj.weight[:64] *= scale
        torch.testing.assert_close(got, _dense_learnable(learned, x, window, 10000.0), atol=TOLERANCE, rtol=TOLERANCE)
        streaming = _attention(tiny, sinks=StreamingSinks(window, 2), rope=rope)
        got = streaming.run(x)
        streaming.module.qkv_proj.weight[:64] *= scale
        torch.testing.assert_close(got, _streamed(streaming, x, window, 2, 10000.0), atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_streaming_sinks_change_nothing_within_the_trained_length(tiny, token_ids):
    ids = token_ids(2, 24)
    plain, streaming = tiny(), tiny(use_attention_sinks=True, sinks=StreamingSinks(num_sinks=4))
    assert torch.equal(streaming(ids).logits, plain(ids).logits)
    longer = token_ids(2, 26)
    difference = (streaming(longer).logits - plain(longer).logits).abs().amax(dim=(0, 2))
    assert (difference[:24] < 1e-4).all()
    assert (difference[24:] > 1e-3).all()


@torch.no_grad()
def test_a_sink_logit_of_minus_infinity_is_no_sink(tiny, token_ids):
    ids, plain, model = token_ids(2, 24), tiny(), tiny(use_attention_sinks=True, sinks=SinkLogits())
    shut = {f"blocks.{layer}.attention.sinks.logits": torch.full((4,), -1e4) for layer in range(2)}
    model.load_state_dict(plain.state_dict() | shut)
    torch.testing.assert_close(model(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)
