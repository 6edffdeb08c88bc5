"""Optimisers against torch's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from modern_llm.models import ModernDecoderLM, ModernLLMConfig, MoEConfig
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import GQAConfig
from modern_llm.training.optimization.muon import _POLYNOMIALS, MuonWithAdamW, orthogonalise
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.optimization.parameters import trained_parameters
from modern_llm.training.optimization.rates import Rates

MUON: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "betas": (0.9, 0.95), "eps": 1e-8}


def tiny_model() -> ModernDecoderLM:
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=2, qk_norm=True))


def test_vectors_are_not_decayed_and_every_parameter_is_in_one_group() -> None:
    model = tiny_model()
    for settings in (AdamW(weight_decay=0.3), Muon(weight_decay=0.3)):
        groups = settings.build(model).param_groups
        members = [p for group in groups for p in group["params"]]
        assert len(members) == len(set(map(id, members))) == len(list(model.parameters()))
        for group in groups:
            assert all((p.dim() >= 2) == (group["weight_decay"] == pytest.approx(0.3)) for p in group["params"])


def test_frozen_parameters_are_left_alone() -> None:
    model = tiny_model()
    model.embedding.weight.requires_grad_(False)
    for settings in (AdamW(), Muon()):
        members = [p for group in settings.build(model).param_groups for p in group["params"]]
        assert all(p is not model.embedding.weight for p in members)


def test_adamw_half_of_muon_equals_torch() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 7)), None
    theirs = nn.Parameter(ours.detach().clone())
    settings = {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}
    mine = MuonWithAdamW([{"params": [ours], "weight_decay": 0.2}], momentum=0.9, **settings)
    reference = torch.optim.AdamW([theirs], weight_decay=0.2, **settings)
    for _ in range(5):
        gradient = torch.randn(5, 7)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_muon_step_agrees_with_torch() -> None:
    """torch runs its iteration in bf16, ours in fp32 on a CPU: directions agree to that precision."""
    torch.manual_seed(0)
    for shape in ((16, 48), (48, 16), (24, 24)):
        ours = nn.Parameter(torch.randn(shape))
        theirs, start = nn.Parameter(ours.detach().clone()), ours.detach().clone()
        mine = MuonWithAdamW([{"params": [ours], "rows": [shape[:1]], "weight_decay": 0.1, "use_muon": True}], **MUON)
        reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            gradient = torch.randn(shape)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            mine.step()
            reference.step()
        difference = (ours - theirs).norm() / (theirs - start).norm()
        assert difference < 0.03


def test_maps_that_are_stored_as_one_are_orthogonalised_apart() -> None:
    """Wherever another parameter has the shape of one of them, too."""
    torch.manual_seed(0)
    other, whole = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(20, 8))
    others = nn.Parameter(other.detach().clone())
    parts = [nn.Parameter(part.clone()) for part in whole.detach().split((12, 4, 4))]
    mine = MuonWithAdamW([{"params": [other, whole], "rows": [(4,), (12, 4, 4)], "use_muon": True}],
                         variance_decay=0.9, **MUON)  # fmt: skip
    apart = [{"params": [p], "rows": [(len(p),)], "use_muon": True} for p in (others, *parts)]
    theirs = MuonWithAdamW(apart, variance_decay=0.9, **MUON)
    for _ in range(3):
        whole.grad, other.grad = torch.randn(20, 8), torch.randn(4, 8)
        others.grad = other.grad.clone()
        for part, gradient in zip(parts, whole.grad.split((12, 4, 4)), strict=True):
            part.grad = gradient.clone()
        mine.step()
        theirs.step()
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(other, others, rtol=1e-4, atol=1e-6)


def test_our_decoder_says_which_maps_are_stored_as_one() -> None:
    config = ModernLLMConfig(vocab_size=40, d_model=32, n_layers=1, n_heads=4, gqa=GQAConfig(2), ffn_hidden_size=48)
    for moe in (None, MoEConfig(4, 2)):
        model = ModernDecoderLM(replace(config, moe=moe))
        matrices = trained_parameters(model)["matrices"]
        rows = {id(p): r for p, r in zip(matrices.tensors, matrices.rows, strict=True)}
        block = model.blocks[0]
        assert rows[id(block.attention.qkv_proj.weight)] == (32, 16, 16)
        first = block.ffn.experts.first if moe else block.ffn.gate_up_proj.weight
        assert rows[id(first)] == (48, 48)
        assert all(sum(r) == p.shape[-2] for kind in trained_parameters(model).values()
                   for p, r in zip(kind.tensors, kind.rows, strict=True) if p.dim() >= 2)  # fmt: skip


def test_polar_express_is_nearer_to_the_polar_factor_than_the_quintic() -> None:
    """Singular values over three decades: the quintic leaves them in [0.7, 1.2], the other polynomial goes to 1."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q.float() for _ in range(2))
    matrix = u @ torch.diag(torch.logspace(-3, 0, 30)) @ v
    scaled = matrix / matrix.norm()
    errors = {}
    for polynomial in ("quintic", "polar_express"):
        values = torch.linalg.svdvals(orthogonalise(matrix, 8, polynomial))
        errors[polynomial] = float((values - 1).abs().max())
        # The same polynomial on the singular values alone.
        room = 1.01 if polynomial == "polar_express" else 1
        x = torch.linalg.svdvals(scaled) / room
        table = _POLYNOMIALS[polynomial]
        for step in range(8):
            a, b, c = table[min(step, len(table) - 1)]
            y = x / room if step < len(table) - 1 else x
            x = a * y + b * y**3 + c * y**5
        torch.testing.assert_close(values.sort().values, x.sort().values, rtol=1e-3, atol=1e-3)
    assert errors["polar_express"] < 0.01
    assert errors["quintic"] > 0.1


def test_normuon_as_its_paper_writes_it() -> None:
    """Li et al. 2025, algorithm 1, in plain lines on one matrix."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 10))
    held, mean, running = weight.detach().clone(), torch.zeros(6, 10), torch.zeros(6)
    mine = MuonWithAdamW([{"params": [weight], "rows": [(6,)], "use_muon": True}], variance_decay=0.9, **MUON)
    for _ in range(4):
        gradient = torch.randn(6, 10)
        weight.grad = gradient.clone()
        mine.step()
        mean = 0.95 * mean + 0.05 * gradient
        direction = orthogonalise(0.05 * gradient + 0.95 * mean, 5)
        running = 0.9 * running + 0.1 * direction.square().mean(1)
        scaled = direction / running.sqrt()[:, None]
        held -= 0.02 * 0.2 * 10**0.5 * scaled * direction.norm() / scaled.norm()
    torch.testing.assert_close(weight.detach(), held, rtol=1e-4, atol=1e-5)


def test_cautious_decay_shrinks_only_what_the_update_shrinks() -> None:
    torch.manual_seed(0)
    start, gradient = torch.randn(8, 12), torch.randn(8, 12)
    moved = {}
    for name, decay in (("none", 0.0), ("cautious", 5.0), ("full", 5.0)):
        weight = nn.Parameter(start.clone())
        group = {"params": [weight], "rows": [(8,)], "use_muon": True, "weight_decay": decay}
        mine = MuonWithAdamW([group], cautious_decay=name == "cautious", **MUON)
        weight.grad = gradient.clone()
        mine.step()
        moved[name] = weight.detach() - start
    shrinks = moved["none"] * start < 0
    torch.testing.assert_close(moved["cautious"], moved["none"] - 0.1 * start * shrinks)
    torch.testing.assert_close(moved["full"], moved["none"] - 0.1 * start)


def test_each_kind_has_its_rate_and_shrinks_by_its_share_whatever_the_rate() -> None:
    torch.manual_seed(0)
    rates = Rates(embeddings=20.0, heads=0.5, vectors=3.0, decay_embeddings=0.25, decay_heads=2.0)
    for settings in (AdamW(lr=0.01, weight_decay=0.4, rates=rates), Muon(lr=0.01, weight_decay=0.4, rates=rates)):
        model = ModernDecoderLM(replace(tiny_model().config, tie_embeddings=False))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = settings.build(model)
        settings.adjust(optimizer, 0.5, 0.0)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        # The first update of AdamW is the sign of the gradient.
        for name, rate, share in (("embedding", 20, 0.25), ("head", 0.5, 2), ("final_norm", 3, 0)):
            now, old = model.get_submodule(name).weight.detach(), before[f"{name}.weight"]
            torch.testing.assert_close(now, old * (1 - 0.01 * 0.5 * 0.4 * share) - 0.01 * 0.5 * rate)


def test_a_head_is_trained_slower_the_wider_the_model() -> None:
    factors = {}
    for width in (32, 64):
        model = ModernDecoderLM(ModernLLMConfig(vocab_size=40, d_model=width, n_layers=1, n_heads=2,
                                                tie_embeddings=False))  # fmt: skip
        groups = Muon(lr=0.01, rates=Rates(heads=3.0, head_width=32)).build(model).param_groups
        factors[width] = {group["kind"]: group["lr"] for group in groups}
    assert factors[32]["heads"] == pytest.approx(0.03)
    assert factors[64]["heads"] == pytest.approx(0.015)
    assert factors[64]["embeddings"] == factors[32]["embeddings"] == 0.01


def test_momentum_and_decay_go_over_the_run_as_they_are_told() -> None:
    settings = Muon(lr=0.01, momentum_start=0.8, momentum_end=0.9, momentum_warmup=0.2, momentum_cooldown=0.5,
                    weight_decay=0.3, weight_decay_schedule="cosine")  # fmt: skip
    assert [round(settings.momentum_at(p), 6) for p in (0, 0.1, 0.2, 0.4, 0.75, 1)] == [
        0.8, 0.875, 0.95, 0.95, 0.925, 0.9]  # fmt: skip
    assert Muon(momentum=0.9).momentum_at(0) == Muon(momentum=0.9).momentum_at(1) == 0.9
    optimizer = settings.build(tiny_model())
    for progress, share in ((0, 1), (0.5, 0.5), (1, 0)):
        settings.adjust(optimizer, 1.0, progress)
        decays = {group["kind"]: group["weight_decay"] for group in optimizer.param_groups}
        assert decays["matrices"] == pytest.approx(0.3 * share)
        assert decays["vectors"] == 0


@pytest.mark.parametrize("half", [False, True])
def test_orthogonalise_keeps_directions_and_levels_singular_values(half: bool) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(3, 12, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix, steps=8, half=half)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (u @ v).flatten(1)).min() > 0.95


@pytest.mark.parametrize("polynomial", ["quintic", "polar_express"])
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.001])
@pytest.mark.parametrize("rows", [4, 8])
def test_matrices_that_lack_a_direction_do_not_blow_up(polynomial: str, spread: float, rows: int) -> None:
    """As a router's gradient, whose rows sum to zero: in 16-bit products, rounding pushes singular values past 1."""
    torch.manual_seed(0)
    matrices = torch.randn(1000, rows, 1) @ torch.randn(1000, 1, 64) + spread * torch.randn(1000, rows, 64)
    matrices -= matrices.mean(1, keepdim=True)
    assert torch.linalg.matrix_norm(orthogonalise(matrices, 5, polynomial, half=True), 2).max() < 1.4


def test_experts_are_orthogonalised_one_by_one() -> None:
    torch.manual_seed(0)
    stacked = torch.randn(4, 10, 6)
    torch.testing.assert_close(orthogonalise(stacked, 5)[2], orthogonalise(stacked[2], 5), rtol=1e-4, atol=1e-5)


def sorted_by_muon(model: nn.Module) -> tuple[set[str], set[str], set[str]]:
    """Names of what Muon orthogonalises, of what AdamW decays, and of what it does not decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = Muon(weight_decay=0.3).build(model).param_groups
    found: tuple[set[str], set[str], set[str]] = (set(), set(), set())
    for group in groups:
        place = 0 if group["use_muon"] else 1 if group["weight_decay"] else 2
        found[place].update(names[id(p)] for p in group["params"])
    assert sum(map(len, found)) == len(names)
    return found


@pytest.mark.parametrize("sinks", [None, LearnableSinks(num_sinks=4), SinkLogits(), StreamingSinks()])
@pytest.mark.parametrize("moe", [None, MoEConfig(4, 2)])
@pytest.mark.parametrize("tied", [True, False])
def test_muon_takes_linear_maps_and_experts_of_our_decoder(sinks: Any, moe: MoEConfig | None, tied: bool) -> None:
    kind = {} if sinks is None else {"sinks": sinks, "use_attention_sinks": True}
    config = ModernLLMConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=2, qkv_bias=True, qk_norm=True, moe=moe,
                             tie_embeddings=tied, **kind)  # fmt: skip
    muon, decayed, plain = sorted_by_muon(ModernDecoderLM(config))
    ends = {"qkv_proj.weight", "o_proj.weight"}
    ends |= {"router.weight", "gate_up_proj", "down_proj"} if moe else {"gate_up_proj.weight", "down_proj.weight"}
    assert {name.split(".", 3)[-1] for name in muon} == ends
    assert len(muon) == 2 * len(ends)
    assert decayed == {"embedding.weight"} | (set() if tied else {"head.weight"})
    assert all(name.endswith(("norm.weight", ".bias")) or ".sinks." in name for name in plain)
    learned = isinstance(sinks, LearnableSinks | SinkLogits)
    assert any(".sinks." in name for name in plain) == learned


def test_muon_takes_linear_maps_of_gpt2_and_t5() -> None:
    from transformers import (
        GPT2Config,
        GPT2ForSequenceClassification,
        GPT2LMHeadModel,
        T5Config,
        T5ForConditionalGeneration,
    )

    from modern_llm.pretrained.causal import HuggingFaceCausalLM
    from modern_llm.pretrained.classifier import Classifier
    from modern_llm.pretrained.seq2seq import HuggingFaceSeq2Seq

    small = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=16, num_labels=3)
    muon, decayed, _ = sorted_by_muon(HuggingFaceCausalLM(GPT2LMHeadModel(small)))
    parts = {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
    assert {name.split(".", 4)[-1] for name in muon} == parts
    assert {name.rsplit(".", 2)[-2] for name in decayed} == {"wte", "wpe"}

    body = HuggingFaceCausalLM(GPT2ForSequenceClassification(small))
    muon, decayed, _ = sorted_by_muon(Classifier(body, ["a", "b", "c"]))
    assert len(muon) == 8
    assert {name.rsplit(".", 2)[-2] for name in decayed} == {"wte", "wpe", "score"}

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    muon, decayed, _ = sorted_by_muon(HuggingFaceSeq2Seq(t5))
    assert {name.rsplit(".", 2)[-2] for name in muon} == {"q", "k", "v", "o", "wi", "wo"}
    assert {name.rsplit(".", 2)[-2] for name in decayed} == {"shared", "relative_attention_bias"}


def test_muon_leaves_the_heads_of_classifiers_alone() -> None:
    from modern_llm.models import VerifierConfig, VerifierModel
    from modern_llm.pretrained.classifier import Classifier

    verifier = VerifierModel(VerifierConfig(vocab_size=40, d_model=32, n_layers=1, n_heads=2), ["no", "yes"])
    for model in (verifier, Classifier(tiny_model(), ["no", "yes"])):
        muon, decayed, _ = sorted_by_muon(model)
        assert muon
        assert {"score.weight"} <= decayed


@pytest.mark.parametrize("settings", [AdamW(), Muon()])
def test_what_is_trained_in_16_bits_and_not_rounded_at_random_is_refused(settings: AdamW) -> None:
    model = tiny_model().half()
    with pytest.raises(ValueError, match=r"embedding\.weight is trained in torch\.float16"):
        settings.build(model)
    with pytest.raises(ValueError, match=r"embedding\.weight is trained in torch\.bfloat16"):
        settings.groups(model.bfloat16())  # as optimisers of others ask for them
    model.requires_grad_(False)
    model.final_norm.float().requires_grad_(True)
    assert len(settings.build(model).param_groups) == 1  # frozen weights may have any precision
