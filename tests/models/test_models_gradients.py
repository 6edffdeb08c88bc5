"""Every block's gradients against finite differences in float64, and the small layers against their formulas."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from modern_llm.models import ModernLLMConfig
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.plan import plan_attention
from modern_llm.models.attention.rope import NoRope
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.block import DecoderBlock
from modern_llm.models.branches.short_convolution import ShortConvolution
from modern_llm.models.config import GQAConfig, MoEConfig
from modern_llm.models.embedding.predecessors import Predecessors
from modern_llm.models.feed_forward.dense import FeedForward, activated_linear
from modern_llm.models.feed_forward.kinds import GELU, ClampedSwiGLU, GeGLU, ReLU2, SwiGLU
from modern_llm.models.heads.gated import GatedHeads
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.norm import RMSNorm
from modern_llm.models.norm_kinds import LayerNormKind
from modern_llm.models.projections.short_convolution import ProjectionConvolution
from modern_llm.models.residual.scaled import ScaledResidual
from modern_llm.models.values.value_embedding import ValueProjection, ValueTable

BLOCKS = {
    "dense": {},
    "norms and biases": {"qk_norm": True, "qkv_bias": True},
    "nope": {"rope": NoRope()},
    "sliding": {"sliding_window": 3},
    "learnable": {"use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=2)},
    "learnable window": {"use_attention_sinks": True, "sinks": LearnableSinks(window=3, num_sinks=2)},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits()},
    "streaming window": {"use_attention_sinks": True, "sinks": StreamingSinks(window=2, num_sinks=1)},
    "moe": {"moe": MoEConfig(3, 2)},
    "geglu": {"ffn": GeGLU()},
    "relu2": {"ffn": ReLU2()},
    "no gain": {"qk_norm": True, "qk_gain": False, "attention_scale": 1.4},
    "scaled": {"residual": {"scaled": ScaledResidual(1.1, 0.9, 0.2, 0.1)}},
    "projected values": {"values": {"value_projection": ValueProjection(gate_channels=3)}},
    "tabled values": {"values": {"value_table": ValueTable(gate_channels=3)}},
    "short window": {"layers": LayerPattern("S", 3)},
    "canon": {"branches": {"canon": ShortConvolution(3)}},
    "norms behind": {"norm_place": "behind", "branch_scale": 0.7},
    "layer norms on both sides, biases": {"norm": LayerNormKind(), "norm_place": "both", "qkv_bias": True,
                                          "o_bias": True, "ffn_bias": True},
    "clamped experts with biases": {"ffn": ClampedSwiGLU(limit=0.5), "ffn_bias": True,
                                    "moe": MoEConfig(3, 2, router_bias=True)},
    "probabilities of experts": {"moe": MoEConfig(3, 2, normalize_weights=False)},
    "soft cap": {"attention_softcap": 1.2},
    "soft cap and logits": {"attention_softcap": 1.2, "use_attention_sinks": True, "sinks": SinkLogits()},
    "soft cap, short window": {"attention_softcap": 1.2, "layers": LayerPattern("S", 3)},
    "norms over all heads": {"qk_norm": True, "qk_norm_per_head": False},
    "canon of projections": {"projections": {"canon": ProjectionConvolution(3)}},
    "gated heads": {"heads": {"gated": GatedHeads(channels=3)}},
    "gated heads and logits": {"heads": {"gated": GatedHeads(3)}, "use_attention_sinks": True, "sinks": SinkLogits(),
                               "attention_scale": 0.7},
}  # fmt: skip


@pytest.mark.parametrize("settings", BLOCKS.values(), ids=BLOCKS)
def test_block_gradients_equal_finite_differences(loud, settings):
    shape = {"d_model": 8, "n_layers": 1, "n_heads": 2, "ffn_hidden_size": 4, "gqa": GQAConfig(2), "max_seq_len": 8}
    config = ModernLLMConfig(**({"vocab_size": 5} | shape | settings))
    block = loud(DecoderBlock(config)).double()
    names, parameters = zip(*block.named_parameters(), strict=True)
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_()
    rotary = Rotary(config.rope, config.head_size, 8).double()
    plan = plan_attention(config.views[0], rotary, 6)
    if config.moe is not None:  # far from a tie: the finite steps change nobody's experts
        with torch.no_grad():
            block.ffn.router.weight.zero_()
            block.ffn.router.weight[:, :3] = 4 * torch.eye(3)
            block.attention.o_proj.weight.mul_(0.01)
            x[0, :, :3] = torch.tensor([[4, 1, -3], [1, 4, -3], [-3, 4, 1], [4, -3, 1], [1, -3, 4], [-3, 1, 4]])

    embedded = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64).requires_grad_()
    input_ids = torch.tensor([[0, 3, 1, 1, 4, 2]])

    def run(x, embedded, *parameters):
        overrides = dict(zip(names, parameters, strict=True))
        carried = {"embedded": embedded, "input_ids": input_ids, "before": Predecessors()}
        return torch.func.functional_call(block, overrides, (x, plan, carried))[0]

    assert torch.autograd.gradcheck(run, (x, embedded, *parameters))


KINDS = {"swiglu": SwiGLU(), "geglu": GeGLU(), "relu2": ReLU2(), "gelu": GELU(), "clamped": ClampedSwiGLU(limit=0.7)}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_feed_forward_gradients_equal_finite_differences(kind):
    width, run = 5 * kind.parts, partial(activated_linear, kind=kind)
    x = torch.randn(3, 2, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    weight = torch.randn(4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, weight))
    narrow = [t.detach().contiguous().requires_grad_() for t in (x[..., : 3 * kind.parts], weight[:, :3])]
    assert torch.autograd.gradcheck(run, narrow)


@every_kind
def test_a_feed_forward_layer_is_its_formula(loud, kind):
    layer, x = loud(FeedForward(kind, 8, 12)), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    matrices = layer.gate_up_proj.weight.split(12) if kind.gated else 2 * (layer.up_proj.weight,)
    gate, up = (x @ w.T for w in matrices)
    tanh = (math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)).tanh()
    low, inside = gate.clamp(max=0.7), up.clamp(-0.7, 0.7)
    hidden = {
        ReLU2: up.clamp(min=0) ** 2,
        SwiGLU: gate / (1 + (-gate).exp()) * up,
        GeGLU: gate / 2 * (1 + tanh) * up,
        GELU: gate / 2 * (1 + tanh),
        ClampedSwiGLU: low / (1 + (-1.702 * low).exp()) * (inside + 1),
    }[type(kind)]
    expected = hidden @ layer.down_proj.weight.T
    torch.testing.assert_close(layer(x), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)


@every_kind
def test_a_feed_forward_layer_keeps_only_its_projection_for_the_backward_pass(kind):
    x, kept = torch.randn(4, 10 * kind.parts, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        activated_linear(x, torch.randn(3, 10, requires_grad=True), kind)
    assert [t.shape for t in kept] == [x.shape, (3, 10)]


@pytest.mark.parametrize("size", [1, 7, 16])
def test_rms_norm_is_its_formula(size):
    norm, x = RMSNorm(size, eps=0.1).double(), torch.randn(3, 4, size, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(size))
    x.requires_grad_()
    expected = x / (x.square().sum(-1, keepdim=True) / size + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    inputs = [x, norm.weight]
    got = torch.autograd.grad(norm(x).square().sum(), inputs)
    torch.testing.assert_close(got, torch.autograd.grad(expected.square().sum(), inputs))


def test_rms_norm_in_16_bit_keeps_its_statistics_in_32(loud):
    norm = loud(RMSNorm(512, 1e-5))
    x = 300 * torch.randn(4, 512, generator=torch.Generator().manual_seed(0)).bfloat16()  # squares overflow fp16
    got = norm(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), norm(x.float()), rtol=0.02, atol=0.02)
    half = norm(x.half())
    torch.testing.assert_close(half.float(), norm(x.float()), rtol=0.005, atol=0.005)


@pytest.mark.parametrize(
    "places",
    [
        {"dropout": 0.5},
        {"dropout": 0.5, "embedding_dropout": 0.0},
        {"embedding_dropout": 0.5},
        {"attention_dropout": 0.5},
        {"attention_dropout": 0.5, "group_size": 2, "use_attention_sinks": True, "sinks": SinkLogits()},
        {"ffn_dropout": 0.5},
        {"output_dropout": 0.5},
    ],
)
def test_dropout_acts_in_training_alone(tiny, token_ids, places):
    model, ids = tiny(**places), token_ids(1, 8)
    without = {name: value for name, value in places.items() if "dropout" not in name}
    assert torch.equal(model(ids).logits, tiny(**without)(ids).logits)
    model.train()
    torch.manual_seed(0)
    dropped = model.hidden_states(ids).hidden
    torch.manual_seed(0)
    assert torch.equal(model.hidden_states(ids).hidden, dropped)
    assert not torch.allclose(model.hidden_states(ids).hidden, dropped)


def test_no_position_sees_the_future(tiny, token_ids):
    """The gradient of a position's logits is zero at every later embedding, and not before."""
    for settings in ({}, {"use_attention_sinks": True, "sinks": StreamingSinks(window=9, num_sinks=1)}):
        model, ids = tiny(**settings), token_ids(1, 9)
        seen = []
        handle = model.embedding.register_forward_hook(lambda m, i, out, seen=seen: seen.append(out))
        logits = model(ids).logits
        handle.remove()
        (gradient,) = torch.autograd.grad(logits[0, 4].square().sum(), seen[0])
        reached = gradient[0].abs().amax(-1)
        assert (reached[:5] > 1e-4).all()
        assert (reached[5:] == 0).all()


def test_initial_scale_of_the_weights():
    """Normal(0, std), and std / sqrt(2 layers) where a branch writes to the residual stream."""
    from modern_llm.models import ModernDecoderLM

    config = ModernLLMConfig(
        500, d_model=128, n_layers=8, moe=MoEConfig(4, 1), use_attention_sinks=True, init=GPT2Init(0.1)
    )
    torch.manual_seed(0)
    model = ModernDecoderLM(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        elif "sinks.values" in name:
            assert not parameter.any(), name
        else:
            expected = 0.1 / 4 if name.endswith(("o_proj.weight", "down_proj")) else 0.1
            assert abs(parameter.std().item() / expected - 1) < 0.1, name
    assert abs(F.cross_entropy(model(torch.arange(64)[None]).logits[0], torch.arange(64) + 1).item() - 6.2) < 1.5
