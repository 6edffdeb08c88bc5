"""Optimisers against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from modern_llm.models import ModernDecoderLM, ModernLLMConfig, MoEConfig
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.training.optimization.muon import MuonWithAdamW, orthogonalise
from modern_llm.training.optimization.optimizers import AdamW, Muon


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
            assert all((p.dim() >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])


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
    mine = MuonWithAdamW([{"params": [ours], "weight_decay": 0.2}], momentum=0.9, newton_schulz_steps=5, **settings)
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
        mine = MuonWithAdamW(
            [{"params": [ours], "weight_decay": 0.1, "use_muon": True}], 0.02, 0.95, 5, (0.9, 0.95), 1e-8
        )
        reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
        for _ in range(3):
            gradient = torch.randn(shape)
            ours.grad, theirs.grad = gradient.clone(), gradient.clone()
            mine.step()
            reference.step()
        difference = (ours - theirs).norm() / (theirs - start).norm()
        assert difference < 0.03


def test_orthogonalise_keeps_directions_and_levels_singular_values() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(3, 12, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalise(matrix, steps=8)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.5
    assert values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(result.flatten(1), (u @ v).flatten(1)).min() > 0.95


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [AdamW(), Muon()])
def test_what_is_trained_in_16_bit_is_refused(settings: AdamW, dtype: torch.dtype) -> None:
    model = tiny_model().to(dtype)
    with pytest.raises(ValueError, match=r"embedding\.weight is trained in torch\.(b)?float16"):
        settings.build(model)
    model.requires_grad_(False)
    model.final_norm.float().requires_grad_(True)
    assert len(settings.build(model).param_groups) == 1  # frozen weights may have any precision
