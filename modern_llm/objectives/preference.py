"""Learning from pairs of answers to one prompt, of which one is preferred."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from modern_llm.models.fused_loss import IGNORE_INDEX, linear_token_nll
from modern_llm.models.kernels import places_of
from modern_llm.models.output_head import OutputHead
from modern_llm.objectives.base import (
    Batch,
    LossOutput,
    Objective,
    add_expert_losses,
    means_over_rows,
    survey_experts,
)
from modern_llm.objectives.preference_losses import PairLogProbs, PreferenceLoss


class BranchingLM(Protocol):
    """What the objective asks of a language model: several answers behind one prompt in one pass."""

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""

    def hidden_states(self, input_ids: Tensor, *, branch_ids: Tensor) -> Any:
        """An output whose `hidden` is (B, T, d), where no branch sees another."""


def answer_log_probs(model: BranchingLM, batch: Batch) -> tuple[Tensor, Any]:
    """Log-probabilities of the A answers of every pair, in nats, without the (B, T, V) logits.

    The prompt stands once in each row and all answers behind it, as branches that do not see each other. So it is
    computed once, and its gradient is the sum of the answers'.

    Args:
        model: any decoder of this project.
        batch: `input_ids`, `branch_ids` (B, T); `target_positions`, `labels` (B, A, K), where the tokens of the chosen
            and of the rejected answer, and of a mismatched one where there is one, are predicted, and those tokens;
            `answer_lengths` (B, A), how many those are, and, where attention may use it, `branch_lengths` (B, 1 + A),
            how many tokens the prompt and each branch have in the row, both on the host.

    Returns:
        (B, A) sums over the tokens of each answer, and the model's output.
    """
    each, output = answer_token_log_probs(model, batch)
    return each.sum(-1), output


def answer_token_log_probs(model: BranchingLM, batch: Batch) -> tuple[Tensor, Any]:
    """The same of every token of the answers: (B, A, K), 0 where there is none."""
    output = read_answers(model, batch)
    B, T, d = output.hidden.shape
    labels = batch["labels"].flatten()  # (B * A * K,)
    rows = torch.arange(B, device=labels.device)[:, None, None] * T
    places = (rows + batch["target_positions"]).flatten()
    # The head is computed nowhere else.
    real = places_of(labels != IGNORE_INDEX, int(batch["answer_lengths"].sum()))
    nll = linear_token_nll(output.hidden.reshape(-1, d)[places[real]], model.output_head, labels[real])
    each = torch.zeros(len(labels), dtype=nll.dtype, device=nll.device).index_add(0, real, -nll)
    return each.view(batch["labels"].shape), output


def _of_answers(batch: Batch, which: slice) -> Batch:
    """The batch with some of the answers to be predicted; the model still reads all of them."""
    return batch | {name: batch[name][:, which] for name in ("target_positions", "labels", "answer_lengths")}


def read_answers(model: BranchingLM, batch: Batch) -> Any:
    """The model's output for prompts with their answers behind them."""
    known: Any = {name: batch[name] for name in ("expert_load", "branch_lengths") if name in batch}
    return model.hidden_states(batch["input_ids"], branch_ids=batch["branch_ids"], **known)


class PreferenceOptimisation(Objective):
    """A preference loss over pairs, plus the model's auxiliary losses.

    Logged, as means over the pairs: `preference_accuracy`, how often the chosen answer has the larger reward (a tie
    counts half); `reward_margin`; `chosen_reward` and `rejected_reward`; `chosen_log_prob` and `rejected_log_prob`;
    with a reference, `kl_estimate`, half the squared log-ratio: an estimate of the divergence between policy and
    reference, in nats per answer (k2 of Schulman 2020, "Approximating KL divergence"), taken on the answers at hand
    and not on samples of the policy; for KTO, `reference_point`, in nats.

    Mismatched answers are read for their log-probabilities alone. Where a step is cut, they are surveyed by one forward
    pass more, so that the reference point is that of the whole batch; an evaluation is surveyed as one batch.

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
        if not self.loss.needs_mismatched:
            return survey_experts(model, micro_batches, read_answers)
        with torch.no_grad():
            return means_over_rows(micro_batches, lambda batch: _mismatched(model, batch))

    @property
    def surveys_evaluation(self) -> bool:
        return self.loss.needs_mismatched

    def __call__(self, model: BranchingLM, batch: Batch) -> LossOutput:
        """batch: as in `answer_log_probs`; `reference_log_probs` (B, A) where the loss needs a reference; what `survey`
        found, where the batch is a part of one."""
        known = batch.get("mismatched_log_ratio")
        if known is not None:
            batch = _of_answers(batch, slice(2))
        sums, output = answer_log_probs(model, batch)
        tokens = (batch["labels"] != IGNORE_INDEX).sum(-1)
        reference = batch["reference_log_probs"].to(sums.dtype) if self.loss.needs_reference else torch.zeros_like(sums)
        pairs = PairLogProbs.of(sums, tokens, reference, known)
        loss = self.loss(pairs).sum()
        result = LossOutput(loss, {name: values.sum() for name, values in measures(self.loss, pairs).items()})
        if output.aux_losses:
            result.metrics["preference_loss"] = loss
        add_expert_losses(result, output, len(sums))
        return result


def _mismatched(model: BranchingLM, batch: Batch) -> Batch:
    """The mean log-ratio of the mismatched answers of a micro-batch, and the load of its experts where that counts."""
    sums, output = answer_log_probs(model, _of_answers(batch, slice(2, 3)))
    found = {"mismatched_log_ratio": (sums[:, 0] - batch["reference_log_probs"][:, 2].to(sums.dtype)).mean()}
    return found | ({"expert_load": output.expert_load} if getattr(model, "balances_experts", False) else {})


def reward_measures(chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    """What is logged of the rewards of B pairs, (B,) each."""
    margin = chosen - rejected
    return {
        "preference_accuracy": (margin.sign() + 1) / 2,
        "reward_margin": margin,
        "chosen_reward": chosen,
        "rejected_reward": rejected,
    }


@torch.no_grad()
def measures(loss: PreferenceLoss, pairs: PairLogProbs) -> dict[str, Tensor]:
    """What is logged of B pairs, (B,) each; the class above says what they are."""
    chosen, rejected = loss.rewards(pairs)
    found = reward_measures(chosen, rejected)
    found |= {"chosen_log_prob": pairs.chosen, "rejected_log_prob": pairs.rejected}
    if loss.needs_reference:
        # Half of each answer's square, averaged over the two.
        found["kl_estimate"] = (pairs.chosen_ratio.square() + pairs.rejected_ratio.square()) / 4
    if pairs.reference_point is not None:
        found["reference_point"] = pairs.reference_point.expand_as(chosen)
    return found
