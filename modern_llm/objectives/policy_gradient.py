"""Learning from the rewards of answers that the policy drew."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from modern_llm.models.fused_loss import IGNORE_INDEX
from modern_llm.objectives.base import Batch, LossOutput, Objective, add_expert_losses, survey_experts
from modern_llm.objectives.policy_losses import PolicyLoss
from modern_llm.objectives.preference import BranchingLM, answer_token_log_probs, read_answers


class PolicyGradient(Objective):
    """A policy loss over groups of answers, plus the model's auxiliary losses.

    Logged besides what the loss logs: `log_prob_gap`, the mean difference in nats between the log-probabilities of
    tokens when they were drawn and those that are computed here, without a sign: rounding, in the first update of a
    step; and whatever the stream says of its step in `facts`.

    Args:
        loss: one of `policy_losses.py`.
        facts: names of the columns of `facts` in the batches.
    """

    smaller_steps: ClassVar = ("shorter answers, task.asking.max_new_tokens", "fewer answers, task.drawing.samples")

    def __init__(self, loss: PolicyLoss, facts: tuple[str, ...] = ()) -> None:
        self.loss, self.facts = loss, facts

    def count(self, batch: Batch) -> int:
        return int(batch["counted"].sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def survey(self, model: BranchingLM, micro_batches: Iterable[Batch]) -> Batch:
        return survey_experts(model, micro_batches, read_answers)

    def __call__(self, model: BranchingLM, batch: Batch) -> LossOutput:
        """batch, of B groups of G answers of at most K tokens: `input_ids`, `branch_ids` (B, T); `target_positions`,
        `labels` (B, G, K); `advantages` (B, G); `drawn_log_probs` (B, G, K), when the tokens were drawn;
        `old_log_probs` (B, G, K) where the answers are used more than once, else the policy's own are taken;
        `reference_log_probs` (B, G, K) where the loss needs a reference, `teacher_log_probs` (B, G, K) where it needs a
        teacher; `counted` (B,), whose sum over the batch is
        what the loss is divided by; `facts` (B, F), the same in each row."""
        log_probs, output = answer_token_log_probs(model, batch)  # (B, G, K)
        real = batch["labels"] != IGNORE_INDEX
        old = batch["old_log_probs"].to(log_probs.dtype) if "old_log_probs" in batch else log_probs.detach()
        reference = batch["reference_log_probs"].to(log_probs.dtype) if self.loss.needs_reference else None
        teacher = batch["teacher_log_probs"].to(log_probs.dtype) if self.loss.needs_teacher else None

        def flat(values: Tensor | None) -> Any:
            return None if values is None else values.flatten(0, 1)

        advantages = batch["advantages"].to(log_probs.dtype).flatten()
        loss, logged = self.loss(flat(log_probs), flat(old), flat(reference), flat(teacher), advantages, flat(real))
        B, G = real.shape[:2]
        with torch.no_grad():
            gap = ((log_probs - batch["drawn_log_probs"].to(log_probs.dtype)).abs() * real).sum((1, 2))  # (B,)
            logged["log_prob_gap"] = (gap / real.sum((1, 2)).clamp(min=1))[:, None].expand(B, G).flatten()
        rows = {name: values.sum() / G for name, values in logged.items()}
        rows |= dict(zip(self.facts, batch["facts"].sum(0), strict=True)) if self.facts else {}
        result = LossOutput(loss, row_metrics=rows)
        add_expert_losses(result, output, B)
        return result
