"""Optimisers against torch's own."""

from __future__ import annotations

import torch
from torch import nn

from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.training.muon import MuonWithAdamW, orthogonalise
from modern_llm.training.optimizers import AdamW, Muon


def tiny_model() -> ModernDecoderLM:
    torch.manual_seed(0)
    return ModernDecoderLM(ModernLLMConfig(vocab_size=40, d_model=32, n_layers=2, n_heads=2, qk_norm=True))


def test_vectors_are_not_decayed_and_every_parameter_is_in_one_group() -> None:
    model = tiny_model()
    for settings in (AdamW(weight_decay=0.3), Muon(weight_decay=0.3)):
        groups = settings.build(model.named_parameters()).param_groups
        members = [p for group in groups for p in group["params"]]
        assert len(members) == len(set(map(id, members))) == len(list(model.parameters()))
        for group in groups:
            assert all((p.dim() >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])


def test_frozen_parameters_are_left_alone() -> None:
    model = tiny_model()
    model.embedding.weight.requires_grad_(False)
    for settings in (AdamW(), Muon()):
        members = [p for group in settings.build(model.named_parameters()).param_groups for p in group["params"]]
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
