"""Attention to branches by themselves, against the mask over the whole row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from made_models import make_model

from modern_llm.data.batches import branched
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.attention.branching import Branches
from modern_llm.models.config import GQAConfig
from modern_llm.objectives.preference import answer_token_log_probs
from modern_llm.pretrained.causal import HuggingFaceCausalLM


@dataclass
class Prompted:
    prompt_ids: list[int]
    answers: list[list[int]]
    index: int = 0
    length: int = 0


def batch() -> dict[str, torch.Tensor]:
    """Trunks and answers of many lengths; an answer of one token has none in the row."""
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(1, 49, (count,), generator=random).tolist()

    lengths = ((7, (5, 1, 9)), (3, (2, 6, 4)), (1, (8, 8, 1)))
    return branched([Prompted(ids(trunk), [ids(n) for n in answers]) for trunk, answers in lengths], 0)


def own(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "max_seq_len": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "gqa": GQAConfig(2)}
    return ModernDecoderLM(ModernLLMConfig(**{**sizes, **changes}))


MODELS = {
    "own": own,
    "own with a cap": lambda: own(attention_softcap=20.0),
    "llama": lambda: HuggingFaceCausalLM(make_model("llama")),
    "gpt2": lambda: HuggingFaceCausalLM(make_model("gpt2")),
}


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_and_gradients_are_those_of_the_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls, attend = MODELS[name]().double(), [], Branches.attend

    def counted(self: Branches, *given: Any, **more: Any) -> torch.Tensor:
        calls.append(self.shape)
        return attend(self, *given, **more)

    monkeypatch.setattr(Branches, "attend", counted)
    outcomes = []
    for known in (True, False):
        given = batch()
        if not known:
            del given["branch_lengths"]
        net.zero_grad()
        log_probs, _ = answer_token_log_probs(net, given)
        (log_probs * torch.linspace(1, 2, log_probs.numel()).view_as(log_probs)).sum().backward()
        outcomes.append([log_probs.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)])
    assert len(calls) == (0 if name == "own with a cap" else 2)  # layers, in the first pass alone
    for mine, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


def test_answers_of_one_token_have_no_branches() -> None:
    lengths = torch.tensor([[3, 0, 0]])
    assert Branches.of(lengths, 3, torch.device("cpu"), torch.float32) is None
