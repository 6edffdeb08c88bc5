"""The loss of reward models against its closed form, and rewards in one row against those of separate texts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from modern_llm.data.preferences.read import EncodedPair, RewardBatch
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.objectives.reward import BradleyTerry, answer_rewards
from modern_llm.pretrained.classifier import Classifier

PAIRS = [
    EncodedPair(0, [1, 2, 3], [4, 5, 6], [7]),
    EncodedPair(1, [8], [9, 10], [11, 12, 13, 14]),
    EncodedPair(2, [15, 16, 17, 18, 19, 20, 21], [22], [23, 24]),
]


def model(**changes: Any) -> Classifier:
    torch.manual_seed(0)
    given: dict[str, Any] = {"vocab_size": 30, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 32}
    net = Classifier(ModernDecoderLM(ModernLLMConfig(**{**given, **changes})), ["reward"]).double()
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    return net.eval()


@pytest.mark.parametrize(("margin", "centering"), [(0.0, 0.0), (0.7, 0.3)])
def test_value_and_gradients(margin: float, centering: float) -> None:
    chosen = torch.tensor([1.5, -2.0, 0.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-0.5, 3.0, 0.0], dtype=torch.float64, requires_grad=True)
    losses = BradleyTerry(margin, centering).losses(chosen, rejected)
    slopes = torch.autograd.grad(losses.sum(), [chosen, rejected])
    for i, (w, r) in enumerate(zip(chosen.tolist(), rejected.tolist(), strict=True)):
        odds = math.exp(w - r - margin)  # that the chosen one is preferred
        assert losses[i].item() == pytest.approx(-math.log(odds / (1 + odds)) + centering * (w + r) ** 2)
        pull, center = -1 / (1 + odds), 2 * centering * (w + r)
        assert slopes[0][i].item() == pytest.approx(pull + center)
        assert slopes[1][i].item() == pytest.approx(-pull + center)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 4}], ids=["plain", "window"])
def test_values_and_gradients_are_those_of_separate_texts(changes: dict[str, Any]) -> None:
    net = model(**changes)
    batch = RewardBatch(0)(PAIRS)
    together = net.branch_logits(batch["input_ids"], batch["branch_ids"], batch["last"])[..., 0]
    apart = torch.stack(
        [
            torch.cat(
                [net(torch.tensor([pair.prompt_ids + answer]))[0] for answer in (pair.chosen_ids, pair.rejected_ids)]
            )
            for pair in PAIRS
        ]
    )
    torch.testing.assert_close(together, apart, atol=1e-10, rtol=1e-10)
    assert torch.equal(answer_rewards(net, batch), together.float())
    weights = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parameters = list(net.parameters())
    ours = torch.autograd.grad((together * weights).sum(), parameters)
    for a, b in zip(ours, torch.autograd.grad((apart * weights).sum(), parameters), strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def test_counts_metrics_and_micro_batches() -> None:
    net, objective, batch = model(), BradleyTerry(0.1, 0.01), RewardBatch(0)(PAIRS)
    assert objective.count(batch) == 3
    assert objective.tokens(batch) == 7 + 7 + 10
    whole = objective(net, batch)
    rewards = answer_rewards(net, batch)
    assert whole.metrics["preference_accuracy"].item() == (rewards[:, 0] > rewards[:, 1]).sum()
    torch.testing.assert_close(whole.metrics["reward_margin"], (rewards[:, 0] - rewards[:, 1]).sum())
    parts = [objective(net, {k: t[i : i + 1] for k, t in batch.items()}) for i in range(3)]
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum)
    assert not whole.metrics["reward_margin"].requires_grad
