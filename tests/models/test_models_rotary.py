"""Rotation against complex numbers, and the frequencies of every variant against transformers or their formula."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from modern_llm.models import ModernLLMConfig
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import LinearRope, Llama3Rope, NoRope, NTKRope, PlainRope, YarnRope
from modern_llm.models.attention.rotary import Rotary, rotate


def _heads(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_rotation_is_a_product_of_complex_numbers():
    rope, x = PlainRope(700.0), _heads(2, 9, 3, 8)
    got = rotate(x, Rotary(rope, 8, 16).span(4, 13))
    for pair in range(4):
        number = torch.complex(x[..., pair], x[..., pair + 4]).to(torch.complex128)
        angle = torch.arange(4, 13).double() * 700.0 ** (-2 * pair / 8)
        turned = number * torch.polar(torch.ones_like(angle), angle)[:, None]
        torch.testing.assert_close(got[..., pair].double(), turned.real, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(got[..., pair + 4].double(), turned.imag, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shift", [1, 100, 3000])
def test_scores_depend_on_distance_alone(shift):
    rotary, q, k = Rotary(PlainRope(), 16, 4096), _heads(1, 5, 1, 16), _heads(1, 5, 1, 16).flip(0)
    near, far = rotary.span(0, 5), rotary.span(shift, shift + 5)
    scores = [torch.einsum("bihd,bjhd->ij", rotate(q, r), rotate(k, r)) for r in (near, far)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=1e-4)


def test_rotation_keeps_the_length_and_position_zero():
    x = _heads(1, 6, 2, 8)
    got = rotate(x, Rotary(PlainRope(), 8, 8).span(0, 6))
    torch.testing.assert_close(got.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(got[:, 0], x[:, 0])


def test_positions_outside_the_table():
    """The stateless span and the growing table give what a long table held from the start."""
    long, short = Rotary(PlainRope(), 8, 200), Rotary(PlainRope(), 8, 10)
    for got in (short.span(150, 160), short.at(torch.arange(150, 160)[None], 160)):
        for one, expected in zip(got, long.span(150, 160), strict=True):
            assert torch.equal(one, expected)
    assert len(short.cos) == 160


def test_angles_are_exact_at_long_distances():
    """In 32 bits the angle of the fastest pair is wrong by a quarter turn at ten million tokens; here it is not."""
    rotation, position = Rotary(PlainRope(), 8, 4).span(10_000_001, 10_000_002), 10_000_001
    expected = [math.cos(position * 10000.0 ** (-i / 4)) for i in range(4)]
    torch.testing.assert_close(rotation.cos.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_turn_moves_a_rotated_key():
    rotary, x = Rotary(YarnRope(factor=4.0, original_max_seq_len=8), 8, 32), _heads(1, 1, 2, 8)
    moved = rotate(rotate(x, rotary.span(5, 6)), rotary.without_factor(rotary.span(12, 13)))
    torch.testing.assert_close(moved, rotate(x, rotary.span(17, 18)))


def test_a_share_of_the_pairs_turns_as_a_narrower_head():
    rope, x = PlainRope(700.0, fraction=0.5), _heads(2, 5, 3, 16)
    got = rotate(x, Rotary(rope, 16, 16).span(0, 5))
    turning = [0, 1, 2, 3, 8, 9, 10, 11]
    expected = rotate(x[..., turning], Rotary(PlainRope(700.0), 8, 16).span(0, 5))
    torch.testing.assert_close(got[..., turning], expected)
    still = [i for i in range(16) if i not in turning]
    assert torch.equal(got[..., still], x[..., still])


def test_each_layer_turns_by_its_base():
    config = ModernLLMConfig(
        50, 32, 16, 3, 2, rope=LinearRope(500.0, 2.0), layers=LayerPattern(rotary="RBN", other_theta=90.0)
    )
    rotary = Rotary.of_model(config)
    turned = [rotary.of(view).span(1, 2) for view in config.views]
    for got, theta, factor in zip(turned, (500.0, 90.0), (2.0, 1.0), strict=False):
        expected = [math.cos(theta ** (-i / 4) / factor) for i in range(4)]
        torch.testing.assert_close(got.cos.flatten(), torch.tensor(expected))
    assert turned[2] is None


def test_no_rope_rotates_nothing():
    rotary, x = Rotary(NoRope(), 8, 16), _heads(1, 4, 2, 8)
    assert rotate(x, rotary.span(0, 4)) is x
    assert rotary.at(torch.arange(4)[None], 4) is None
    assert rotary.without_factor(rotary.span(3, 4)) is None


@pytest.mark.parametrize("head_dim", [8, 64, 128])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (LinearRope(10000.0, 3.0), {"rope_type": "linear", "factor": 3.0}),
        (
            Llama3Rope(500000.0, 8.0, 8192, 1.0, 4.0),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            },
        ),
        (
            Llama3Rope(10000.0, 4.0, 64, 2.0, 7.0),
            {
                "rope_type": "llama3",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "low_freq_factor": 2.0,
                "high_freq_factor": 7.0,
            },
        ),
        (
            YarnRope(10000.0, 16.0, 4096),
            {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
        ),
        (
            YarnRope(10000.0, 4.0, 64, 16.0, 2.0, 1.7, False),
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 1.7,
                "truncate": False,
            },
        ),
    ],
    ids=["linear", "llama3.1", "llama3-short", "yarn", "yarn-untruncated"],
)
def test_frequencies_and_scale_agree_with_transformers(ours, theirs, head_dim):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        head_dim=head_dim,
        max_position_embeddings=int(theirs["factor"] * theirs.get("original_max_position_embeddings", 64)),
        rope_parameters={"rope_theta": ours.theta, **theirs},
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, "cpu")
    torch.testing.assert_close(torch.tensor(ours.frequencies(head_dim)), frequencies, rtol=1e-5, atol=1e-9)
    assert ours.attention_factor == pytest.approx(scale)


@pytest.mark.parametrize("head_dim", [4, 8, 64])
@pytest.mark.parametrize("factor", [1.0, 2.5, 16.0])
def test_ntk_interpolates_the_slowest_pair_and_leaves_the_fastest(head_dim, factor):
    plain = PlainRope().frequencies(head_dim)
    scaled = NTKRope(factor=factor).frequencies(head_dim)
    assert scaled[0] == plain[0] == 1
    assert scaled[-1] == pytest.approx(plain[-1] / factor, rel=1e-12)
    ratios = [s / p for s, p in zip(scaled, plain, strict=True)]
    assert ratios == sorted(ratios, reverse=True)
