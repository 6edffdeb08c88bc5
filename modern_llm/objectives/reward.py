"""A reward model from preferences: a number for an answer, larger for the preferred one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from modern_llm.objectives.base import Batch, LossOutput, Objective
from modern_llm.objectives.preference import reward_measures


class BranchingClassifier(Protocol):
    """What the objective asks of a model with a head of one class."""

    def branch_logits(self, input_ids: Tensor, branch_ids: Tensor, last: Tensor) -> Tensor:
        """(B, A, 1) for the branches of rows (B, T) that end at `last` (B, A)."""


def answer_rewards(model: BranchingClassifier, batch: Batch) -> Tensor:
    """(B, 2) rewards r(x, y) of the chosen and the rejected answers, read at their last tokens.

    Args:
        model: a body with a scalar head.
        batch: `input_ids`, `branch_ids` (B, T), `last` (B, 2), as `RewardBatch` makes them.
    """
    return model.branch_logits(batch["input_ids"], batch["branch_ids"], batch["last"])[..., 0].float()


class BradleyTerry(Objective):
    """-log sigmoid(r(x, y_w) - r(x, y_l) - margin): the likelihood of the preferences, where the odds that an answer is
    preferred are exp(r) (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1).

    The loss knows differences alone; centering (r(x, y_w) + r(x, y_l))^2 beside it draws the rewards to a mean of 0
    (Eisenstein et al. 2023, arXiv 2312.09244, eq. 2).

    Logged, as means over the pairs: `preference_accuracy` (a tie counts half), `reward_margin`, `chosen_reward`,
    `rejected_reward`.

    Args:
        margin: that the chosen answer's reward is to have over the rejected one's.
        centering: weight of the pull to 0.
    """

    metrics: ClassVar[Sequence[str]] = ("preference_accuracy", "reward_margin")

    def __init__(self, margin: float = 0.0, centering: float = 0.0) -> None:
        self.margin, self.centering = margin, centering

    def count(self, batch: Batch) -> int:
        return len(batch["input_ids"])

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def losses(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(B,) of rewards (B,)."""
        return self.centering * (chosen + rejected).square() - F.logsigmoid(chosen - rejected - self.margin)

    def __call__(self, model: BranchingClassifier, batch: Batch) -> LossOutput:
        """batch: as in `answer_rewards`."""
        chosen, rejected = answer_rewards(model, batch).unbind(1)
        logged = reward_measures(chosen.detach(), rejected.detach())
        return LossOutput(self.losses(chosen, rejected).sum(), {name: values.sum() for name, values in logged.items()})
