"""Learning from pairs of answers to one prompt, of which one is preferred."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from modern_llm.models.fused_loss import IGNORE_INDEX, linear_token_nll
from modern_llm.models.output_head import OutputHead
from modern_llm.objectives.base import Batch, LossOutput, Objective, add_expert_losses, survey_experts
from modern_llm.objectives.preference_losses import PairLogProbs, PreferenceLoss


class BranchingLM(Protocol):
    """What the objective asks of a language model: two answers behind one prompt in one pass."""

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""

    def hidden_states(self, input_ids: Tensor, *, branch_ids: Tensor) -> Any:
        """An output whose `hidden` is (B, T, d), where no branch sees another."""


def answer_log_probs(model: BranchingLM, batch: Batch) -> tuple[Tensor, Any]:
    """Log-probabilities of both answers of every pair, in nats, without the (B, T, V) logits.

    The prompt stands once in each row and both answers behind it, as branches that do not see each other. So it is
    computed once, and its gradient is the sum of both answers'.

    Args:
        model: any decoder of this project.
        batch: `input_ids`, `branch_ids` (B, T); `target_positions`, `labels` (B, 2, K), where the tokens of the chosen
            and of the rejected answer are predicted, and those tokens.

    Returns:
        (B, 2) sums over the tokens of each answer, and the model's output.
    """
    output = _read(model, batch)
    B, T, d = output.hidden.shape
    labels = batch["labels"].flatten()  # (B * 2 * K,)
    rows = torch.arange(B, device=labels.device)[:, None, None] * T
    places = (rows + batch["target_positions"]).flatten()
    real = (labels != IGNORE_INDEX).nonzero()[:, 0]  # the head is computed nowhere else
    nll = linear_token_nll(output.hidden.reshape(-1, d)[places[real]], model.output_head, labels[real])
    answers = real // batch["labels"].shape[2]
    sums = torch.zeros(B * 2, dtype=nll.dtype, device=nll.device).index_add(0, answers, -nll)
    return sums.view(B, 2), output


def _read(model: BranchingLM, batch: Batch) -> Any:
    known: Any = {name: batch[name] for name in ("expert_load",) if name in batch}
    return model.hidden_states(batch["input_ids"], branch_ids=batch["branch_ids"], **known)


class PreferenceOptimisation(Objective):
    """A preference loss over pairs, plus the model's auxiliary losses.

    Logged, as means over the pairs: `preference_accuracy`, how often the chosen answer has the larger reward (a tie
    counts half); `reward_margin`; `chosen_reward` and `rejected_reward`; `chosen_log_prob` and `rejected_log_prob`;
    with a reference, `kl_estimate`, half the squared log-ratio: an estimate of the divergence between policy and
    reference, in nats per answer (k2 of Schulman 2020, "Approximating KL divergence"), taken on the answers at hand
    and not on samples of the policy.

    Args:
        loss: one of `preference_losses.py`.
    """

    metrics: ClassVar[Sequence[str]] = ("preference_accuracy", "reward_margin")

    def __init__(self, loss: PreferenceLoss) -> None:
        self.loss = loss

    def count(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def survey(self, model: BranchingLM, micro_batches: Iterable[Batch]) -> Batch:
        return survey_experts(model, micro_batches, _read)

    def __call__(self, model: BranchingLM, batch: Batch) -> LossOutput:
        """batch: as in `answer_log_probs`, and `reference_log_probs` (B, 2) where the loss needs a reference."""
        sums, output = answer_log_probs(model, batch)
        tokens = (batch["labels"] != IGNORE_INDEX).sum(-1)  # (B, 2)
        reference = batch["reference_log_probs"].to(sums.dtype) if self.loss.needs_reference else torch.zeros_like(sums)
        pairs = PairLogProbs(*sums.unbind(1), *tokens.unbind(1), *reference.unbind(1))
        loss = self.loss(pairs).sum()
        result = LossOutput(loss, {name: values.sum() for name, values in measures(self.loss, pairs).items()})
        if output.aux_losses:
            result.metrics["preference_loss"] = loss
        add_expert_losses(result, output, len(sums))
        return result


@torch.no_grad()
def measures(loss: PreferenceLoss, pairs: PairLogProbs) -> dict[str, Tensor]:
    """What is logged of B pairs, (B,) each; the class above says what they are."""
    chosen, rejected = loss.rewards(pairs)
    margin = chosen - rejected
    found = {
        "preference_accuracy": (margin.sign() + 1) / 2,
        "reward_margin": margin,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
        "chosen_log_prob": pairs.chosen,
        "rejected_log_prob": pairs.rejected,
    }
    if loss.needs_reference:
        # Half of each answer's square, averaged over the two.
        found["kl_estimate"] = (pairs.chosen_ratio.square() + pairs.rejected_ratio.square()) / 4
    return found
