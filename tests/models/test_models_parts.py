"""Every part against the plain model, plain lines, and everything that models can do."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from parts import ALL, EVERY, PARTS, LinearAttention, Parallel, StateSpace
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models import ModernDecoderLM, ModernLLMConfig, MoEConfig
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.branches.short_convolution import ShortConvolution
from modern_llm.models.embedding.learned_positions import LearnedPositions
from modern_llm.models.embedding.normed import NormedEmbedding
from modern_llm.models.embedding.smear import Smear
from modern_llm.models.heads.gated import GatedHeads
from modern_llm.models.initialisation.mup import MuPInit
from modern_llm.models.initialisation.zero import ZeroInit
from modern_llm.models.interop.exporting import to_hugging_face
from modern_llm.models.projections.short_convolution import ProjectionConvolution
from modern_llm.models.recomputing import HostMemory
from modern_llm.models.residual.backout import Backout
from modern_llm.models.residual.scaled import ScaledResidual
from modern_llm.models.residual.unet import UNetSkips
from modern_llm.models.values.value_embedding import ValueProjection, ValueTable
from modern_llm.models.values.value_residual import ValueResidual
from modern_llm.training.optimization.parameters import trained_parameters

every_part = pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY)
NEUTRAL: dict[str, dict[str, Any]] = {
    "smear": {"embedding": {"smear": Smear(weight=0.0)}},
    "scaled": {"residual": {"scaled": ScaledResidual(1.0, 1.0, 0.0, 0.0)}},
    "unet": {"residual": {"unet": UNetSkips(weight=0.0)}},
    "backout": {"residual": {"backout": Backout(weight=0.0)}},
    "canon": {"branches": {"canon": ShortConvolution()}},
    "canon of projections": {"projections": {"canon": ProjectionConvolution()}},
    "value_residual": {"values": {"value_residual": ValueResidual(weight=0.0)}},
    "value_table": {"values": {"value_table": ValueTable()}},
    "value_projection": {"values": {"value_projection": ValueProjection()}},
    "gated": {"heads": {"gated": GatedHeads()}},
}


@pytest.mark.parametrize("settings", NEUTRAL.values(), ids=NEUTRAL)
@torch.no_grad()
def test_a_neutral_part_is_the_plain_model_exactly(tiny, token_ids, settings):
    plain, ids = tiny(n_layers=3), token_ids(2, 20)
    model = ModernDecoderLM(replace(plain.config, **settings)).eval()
    missing = model.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys
    assert missing.missing_keys
    for name, parameter in model.named_parameters():
        if name.endswith((".table", ".projection")) or ".branches." in name or ".projections." in name:
            parameter.zero_()
    assert torch.equal(model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("moe", [None, MoEConfig(4, 2)])
@every_part
def test_declared_weights_are_those_of_the_model(settings, moe):
    config = ModernLLMConfig(vocab_size=50, d_model=32, n_layers=5, n_heads=4, moe=moe, **settings)
    found = trained_parameters(ModernDecoderLM(config))
    counts = {kind: sum(p.numel() for p in of_kind.tensors) for kind, of_kind in found.items()}
    assert {kind: n for kind, n in config.parameters().items() if n} == {k: n for k, n in counts.items() if n}


def _by_hand(model: Any, ids: Tensor) -> Tensor:
    """The logits of a decoder with all parts, in plain lines."""

    def norm(x: Tensor, weight: Tensor | float = 1.0, eps: float = 1e-5) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    H, D, L = 4, 8, model.config.n_layers
    B, T = ids.shape
    angle = torch.arange(T)[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)

    def turned(x: Tensor) -> Tensor:  # (B, T, H, D)
        turn = torch.polar(torch.ones_like(angle), angle)[:, None]
        y = torch.complex(x[..., : D // 2], x[..., D // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    def convolved(n: Tensor, kernel: Tensor) -> Tensor:
        padded = F.pad(n, (0, 0, len(kernel) - 1, 0)).mT  # (B, d, width - 1 + T)
        return n + F.conv1d(padded, kernel.T.flip(1)[:, None], groups=kernel.shape[1]).mT

    x = norm(2 * model.embedding.weight[ids], eps=1e-6)
    smear = model.embedding_parts["smear"]
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    x = x + smear.weight * (x[..., :12] @ smear.gate.T).sigmoid() * before
    embedded, left = x, []
    for layer, block in enumerate(model.blocks):
        x = block.residual["scaled"].scale * x + block.residual["scaled"].shortcut * embedded
        if layer >= (L + 1) // 2:
            x = x + block.residual["unet"].weight * left[L - 1 - layer]
        n, attention = norm(x, block.attention_norm.weight), block.attention
        n = convolved(n, block.branches["canon"].attention)
        projected = convolved(n @ attention.qkv_proj.weight.T, attention.projections["canon"].kernel)
        q, k, v = projected.view(B, T, 3 * H, D).split(H, dim=2)
        if layer == 0:
            first = v
        else:
            share = attention.values["value_residual"].weight
            v = (1 - share) * v + share * first
        table = attention.values["value_table"]
        if layer % 2 == (L - 1) % 2:
            gate = 2 * (n[..., :12] @ table.gate.T).sigmoid()
            v = v + gate[..., None] * table.table[ids].view(B, T, H, D)
        projection = attention.values["value_projection"]
        gate = 2 * (n[..., :12] @ projection.gate.T).sigmoid()
        v = v + gate[..., None] * (embedded @ projection.projection.T).view(B, T, H, D)
        q, k = norm(turned(q)), norm(turned(k))  # a rotation changes no length
        scores = 1.5 * torch.tanh(torch.einsum("bthd,bshd->bhts", q, k) * 1.44 / D**0.5 / 1.5)
        scores = scores.masked_fill(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
        y = y * 2 * (n[..., :12] @ attention.heads["gated"].gate.T).sigmoid()[..., None]
        written = y.reshape(B, T, -1) @ attention.o_proj.weight.T + attention.o_proj.bias
        x = x + 0.6 * norm(written, block.attention_end_norm.weight)
        n = convolved(norm(x, block.ffn_norm.weight), block.branches["canon"].ffn)
        gate, up = (n @ block.ffn.gate_up_proj.weight.T + block.ffn.gate_up_proj.bias).chunk(2, -1)
        written = (F.silu(gate) * up) @ block.ffn.down_proj.weight.T + block.ffn.down_proj.bias
        x = x + 0.6 * norm(written, block.ffn_end_norm.weight)
        left.append(x)
    x = norm(x - model.residual["backout"].weight * left[L // 2], model.final_norm.weight)
    return 5 * torch.tanh(0.7 * x @ model.head.weight.T / 5)


@torch.no_grad()
def test_a_block_of_ones_own_in_plain_lines(tiny, token_ids):
    """The page's parallel block behind one of ours, with grouped heads and residual parts around both."""
    residual = {"scaled": ScaledResidual()}
    model: Any = tiny(n_layers=3, group_size=2, block=Parallel(wider=2), residual=residual)
    ids = token_ids(2, 13)
    first: Any = tiny(n_layers=1, group_size=2, residual=residual)
    first.load_state_dict({n: w for n, w in model.state_dict().items() if n in first.state_dict()})
    behind: list[Tensor] = []
    first.blocks[0].register_forward_hook(lambda module, inputs, output: behind.append(output[0]))
    first(ids)
    x, embedded = behind[0], model.embedding.weight[ids]
    angle = torch.arange(13)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    turn = torch.polar(torch.ones_like(angle), angle)[:, None]

    def turned(t: Tensor) -> Tensor:  # (B, T, H, D)
        y = torch.complex(t[..., :4], t[..., 4:]) * turn
        return torch.cat([y.real, y.imag], -1)

    for block in model.blocks[1:]:
        own, scaled = block.mixing.own, block.residual["scaled"]
        x = scaled.scale * x + scaled.shortcut * embedded
        n = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * own.gain
        q, k, v, hidden = (n @ own.read.T).split([32, 16, 16, 64], dim=-1)
        q, k, v = turned(q.view(2, 13, 4, 8)), turned(k.view(2, 13, 2, 8)), v.view(2, 13, 2, 8)
        k, v = k.repeat_interleave(2, 2), v.repeat_interleave(2, 2)
        scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
        scores = scores.masked_fill(torch.ones(13, 13, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        attended = torch.einsum("bhts,bshd->bthd", scores, v).flatten(2)
        x = x + attended @ own.write[:, :32].T + F.gelu(hidden) @ own.write[:, 32:].T
    torch.testing.assert_close(model(ids).logits, model.final_norm(x) @ model.head.weight.T, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_blocks_that_write_nothing_are_not_there(tiny, token_ids):
    """What is left is ours, with experts, parts and sinks: the model of the blocks that stay."""
    settings = ALL | {"moe": MoEConfig(4, 2), "use_attention_sinks": True, "sinks": LearnableSinks(num_sinks=2)}
    settings |= {"residual": {}, "values": {"value_projection": ValueProjection()}, "ffn_bias": False}
    ours, ids = tiny(n_layers=2, **settings), token_ids(2, 20)
    model = ModernDecoderLM(replace(ours.config, n_layers=4, block=StateSpace(every=2))).eval()
    named = ours.state_dict()
    moved = {n.replace("blocks.1.", "blocks.3.").replace("blocks.0.", "blocks.1."): w for n, w in named.items()}
    missing = model.load_state_dict(moved, strict=False)
    assert not missing.unexpected_keys
    assert all(".mixing." in name for name in missing.missing_keys)
    output, expected = model(ids), ours(ids)
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.expert_load, expected.expert_load)
    # Shares of a whole batch are those of the blocks that have experts.
    load = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]])
    of_both = [m.hidden_states(ids, expert_load=load).aux_losses["balance_loss"] for m in (model, ours)]
    assert torch.equal(*of_both)
    more = model.config.block.counts(ours.config.sizes, [0, 2])
    assert model.config.parameters() == ours.config.parameters() + more


def test_experts_need_a_block_that_has_them(tiny, token_ids):
    model = tiny(moe=MoEConfig(4, 2), block=StateSpace())
    output = model(token_ids(1, 9), labels=token_ids(1, 9))
    assert output.expert_load is None
    assert not output.aux_losses
    assert not model.balances_experts


@pytest.mark.parametrize("settings", [{"attention": LinearAttention(every=2)}, {"block": StateSpace(every=2)}])
def test_what_stands_in_another_place_takes_the_parts_there_with_it(settings):
    """Tables of values, gates and sinks are counted where softmax attention is, alone."""
    parts = {key: ALL[key] for key in ("branches", "projections", "values", "heads")}
    config = ModernLLMConfig(vocab_size=50, d_model=32, n_layers=5, n_heads=4, use_attention_sinks=True, **settings,
                             **parts)  # fmt: skip
    assert config.parameter_count() == sum(p.numel() for p in ModernDecoderLM(config).parameters())


@pytest.mark.parametrize("n_layers", [2, 3, 4])
@torch.no_grad()
def test_all_parts_in_plain_lines(tiny, token_ids, n_layers):
    model, ids = tiny(n_layers=n_layers, **ALL), token_ids(2, 13)
    torch.testing.assert_close(model(ids).logits, _by_hand(model, ids), atol=1e-4, rtol=1e-4)


@every_part
@torch.no_grad()
def test_a_part_is_there_and_sees_no_future(tiny, token_ids, settings):
    model, ids = tiny(n_layers=3, **settings), token_ids(1, 20)
    now = model(ids).logits
    plain = tiny(n_layers=3, **({"tie_embeddings": False} if "tie_embeddings" in settings else {}))
    assert (now - plain(ids).logits).abs().max() > 1e-2
    changed = ids.clone()
    changed[0, 12:] = token_ids(8, seed=9)
    torch.testing.assert_close(model(changed).logits[:, :12], now[:, :12])


@every_part
@torch.no_grad()
def test_two_branches_equal_two_texts(tiny, token_ids, settings):
    model, ids = tiny(n_layers=3, group_size=2, **settings), token_ids(2, 14)
    branches = torch.tensor([0] * 5 + [1] * 4 + [2] * 5).expand(2, -1)
    hidden = model.hidden_states(ids, branch_ids=branches).hidden
    for chosen, places in (
        (ids[:, :9], range(9)),
        (torch.cat([ids[:, :5], ids[:, 9:]], 1), [*range(5), *range(9, 14)]),
    ):
        alone = model.hidden_states(chosen).hidden
        torch.testing.assert_close(hidden[:, list(places)], alone, atol=1e-4, rtol=1e-4)


@every_part
def test_recomputed_blocks_give_the_same_gradients(tiny, token_ids, settings):
    model, ids, labels = tiny(n_layers=4, **settings).train(), token_ids(2, 12), token_ids(2, 12, seed=2)
    gradients = []
    for again, memory in ((False, None), (True, None), (True, HostMemory(torch.device("cpu")))):
        model.zero_grad()
        model.activation_checkpointing, model.host_memory = again, memory
        model(ids, labels=labels).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
        assert all(g.abs().max() > 0 for g in gradients[-1].values())
    for name, gradient in gradients[0].items():
        for others in gradients[1:]:
            torch.testing.assert_close(others[name], gradient, msg=name)


@every_part
def test_gradients_equal_finite_differences(loud, token_ids, settings):
    shape: dict[str, Any] = {
        "vocab_size": 7,
        "max_seq_len": 8,
        "d_model": 12,
        "n_layers": 2,
        "n_heads": 2,
        "ffn_hidden_size": 4,
    }
    model: Any = loud(ModernDecoderLM(ModernLLMConfig(**(shape | settings)))).double()
    ids, labels = token_ids(1, 5) % 7, token_ids(1, 5, seed=2) % 7
    # What the plain model has already is tested with the blocks.
    new = ("embedding", "residual", "branches", "projections", "values", "heads", "head.", ".own.")
    named = {n: p for n, p in model.named_parameters() if any(group in n for group in new)}
    names, parameters = tuple(named), tuple(named.values())

    def loss(*changed: Tensor) -> Tensor:
        overrides = dict(zip(names, changed, strict=True))
        logits = torch.func.functional_call(model, overrides, (ids,), tie_weights=True).logits
        return F.cross_entropy(logits[0], labels[0])

    many = sum(p.numel() for p in parameters) > 500  # these are tried in random directions
    assert torch.autograd.gradcheck(loss, parameters, fast_mode=many)


@every_part
def test_blocks_are_one_graph(tiny, token_ids, settings):
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    model, ids = tiny(n_layers=4, **settings).train(), token_ids(2, 12)
    expected = model(ids).logits
    torch.compiler.reset()
    for block in model.blocks:
        block.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert len(graphs) <= 4
    torch.compiler.reset()


@pytest.mark.parametrize("name", PARTS)
def test_export_names_the_part(tiny, name):
    settings = PARTS[name]
    named = "|".join(rf"model\.{key}=.*{re.escape(repr(value))}" for key, value in settings.items())
    with pytest.raises(ValueError, match=named):
        to_hugging_face(tiny(**settings))


@torch.no_grad()
def test_norms_without_a_weight_are_exported_as_ones(tiny, token_ids):
    model, ids = tiny(qk_norm=True, qk_gain=False), token_ids(2, 12)
    theirs = to_hugging_face(model)
    assert theirs.config.model_type == "qwen3"
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    with pytest.raises(ValueError, match="attention_scale"):
        to_hugging_face(tiny(qk_norm=True, attention_scale=1.2))


@pytest.mark.parametrize("sinks", [LearnableSinks(num_sinks=3), SinkLogits(), StreamingSinks(window=6, num_sinks=2)])
@torch.no_grad()
def test_a_fixed_scale_leaves_the_meaning_of_sinks(tiny, token_ids, sinks):
    """A scale on the scores is a scale on the queries, whatever the sinks."""
    ids = token_ids(2, 18)
    scaled = tiny(attention_scale=1.5, use_attention_sinks=True, sinks=sinks)
    plain = tiny(use_attention_sinks=True, sinks=sinks)
    for block in plain.blocks:
        block.attention.qkv_proj.weight[:32] *= 1.5
    torch.testing.assert_close(scaled(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_blocks_begin_as_nothing_and_all_tokens_alike():
    torch.manual_seed(0)
    config = ModernLLMConfig(vocab_size=512, d_model=64, n_layers=3, n_heads=4, init=ZeroInit(), tie_embeddings=False,
                             moe=MoEConfig(4, 2), qkv_bias=True)  # fmt: skip
    model: Any = ModernDecoderLM(config)
    ids = torch.randint(512, (2, 9))
    torch.testing.assert_close(model.hidden_states(ids).hidden, model.final_norm(model.embedding(ids)))
    assert model(ids).logits.abs().max() < 0.05
    assert float(model.embedding.weight.std()) == pytest.approx(1.0, rel=0.05)
    assert float(model.blocks[0].attention.qkv_proj.weight.std()) == pytest.approx(64**-0.5, rel=0.05)
    assert float(model.blocks[0].ffn.gate_up_proj.std()) == pytest.approx(64**-0.5, rel=0.05)
    assert not model.blocks[0].ffn.down_proj.any()


def test_mup_keeps_what_leaves_each_block_at_one_size_over_widths():
    sizes: dict[int, list[float]] = {}
    for width in (64, 512):
        torch.manual_seed(0)
        config = ModernLLMConfig(vocab_size=256, d_model=width, n_layers=2, n_heads=width // 32, init=MuPInit(),
                                 tie_embeddings=False)  # fmt: skip
        model: Any = ModernDecoderLM(config)
        sizes[width] = []
        for block in model.blocks:
            block.register_forward_hook(lambda *call, width=width: sizes[width].append(float(call[2][0].std())))
        with torch.no_grad():
            logits = model(torch.randint(256, (4, 32))).logits
        assert float(logits.std()) == pytest.approx(width**-0.5, rel=0.15)  # 0 in the limit, as the table asks
    assert sizes[512] == pytest.approx(sizes[64], rel=0.15)


NEUTRAL_NUMBERS: dict[str, dict[str, Any]] = {
    "scales": {"embedding_scale": 1.0, "branch_scale": 1.0, "logit_scale": 1.0},
    "no cap": {"attention_softcap": None},
    "learned positions": {"embedding": {"learned_positions": LearnedPositions()}},
    "biases": {"o_bias": True, "ffn_bias": True},
    "one base twice": {"layers": LayerPattern(rotary="BR", other_theta=10000.0)},
}


@pytest.mark.parametrize("settings", NEUTRAL_NUMBERS.values(), ids=NEUTRAL_NUMBERS)
@torch.no_grad()
def test_a_neutral_number_is_the_plain_model_exactly(tiny, token_ids, settings):
    plain, ids = tiny(n_layers=3), token_ids(2, 20)
    model = ModernDecoderLM(replace(plain.config, **settings)).eval()
    new = model.load_state_dict(plain.state_dict(), strict=False).missing_keys
    for name in new:
        model.get_parameter(name).zero_()
    assert torch.equal(model(ids).logits, plain(ids).logits)


@torch.no_grad()
def test_a_wide_cap_is_no_cap(tiny, token_ids):
    plain, capped, ids = tiny(group_size=2), tiny(group_size=2, attention_softcap=1e4), token_ids(2, 20)
    torch.testing.assert_close(capped(ids).logits, plain(ids).logits, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(capped(ids).logits, plain(ids).logits, atol=0.3, rtol=0.1)


def test_a_text_without_a_position_left_is_refused(tiny, token_ids):
    model = tiny(embedding={"learned_positions": LearnedPositions()})
    cache = model.new_cache(1, 30)
    model(token_ids(1, 24), cache=cache)
    with pytest.raises(ValueError, match=r"model\.max_seq_len=24: learned positions end there, and a text has 25"):
        model(token_ids(1, 1), cache=cache)


@torch.no_grad()
def test_the_token_before_is_of_the_same_text(tiny, token_ids):
    """The first token of a document, of a padded text and of a stream has none before it."""
    parts = {"embedding": {"normed": NormedEmbedding(), "smear": Smear()}, "branches": {"canon": ShortConvolution(4)}}
    model, ids = tiny(**parts), token_ids(1, 12)
    alone = model(ids[:, 5:]).logits
    documents = torch.tensor([[3] * 5 + [1] * 7])
    torch.testing.assert_close(model(ids, document_ids=documents).logits[:, 5:], alone, atol=1e-4, rtol=1e-4)
    mask = torch.tensor([[0] * 5 + [1] * 7])
    torch.testing.assert_close(model(ids, attention_mask=mask).logits[:, 5:], alone, atol=1e-4, rtol=1e-4)
