"""`hardware.attention=flex` is refused early where it cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loops import model
from parts import PARTS

from modern_llm.models.verifier import VerifierModel
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.training.dropout import switch_off_dropout
from modern_llm.training.runtime import Runtime, attend_flexibly
from modern_llm.training.settings import Hardware


def test_a_machine_without_cuda_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"hardware\.device=auto came to (cpu|mps)\. Use hardware\.attention=sdpa"):
        Runtime(Hardware(precision="fp32", compile=True, attention="flex"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (PARTS["linear attention in every second block"], r"model\.attention"),
        ({"d_model": 16}, r"heads have 8 columns.*model\.head_dim=16"),
        ({"attention_dropout": 0.1}, r"model\.attention_dropout=0\.1"),
    ],
)
def test_what_it_cannot_compute_is_named(changes: dict[str, Any], message: str) -> None:
    net = model(**changes)
    with pytest.raises(ValueError, match=rf"hardware\.attention='flex': .*{message}.*hardware\.attention=sdpa"):
        attend_flexibly(net)
    assert not net.flexible_attention


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match=r"not for VerifierModel"):
        attend_flexibly(VerifierModel(VerifierConfig(vocab_size=50), ["wrong", "right"]))


def test_dropout_that_is_switched_off_is_none() -> None:
    net = model(attention_dropout=0.1)
    switch_off_dropout(net)
    attend_flexibly(net)
    assert net.flexible_attention
