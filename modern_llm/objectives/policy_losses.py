"""Losses of learning from rewards: settings and formula. Torch is imported where a formula is computed, so that a
configuration is checked without it.

They are one formula with four choices, and the papers are points in it (conf/task/policy_loss). Of G answers y_1 … y_G
to a prompt x with rewards r, the loss of token t of answer i is

    -min(w A, clip(w, 1 - low, 1 + high) A) + beta (exp(d) - d - 1),    A = A_i + c s,

where A_i is the advantage of the answer, w the ratio of the policy's probability to that of the policy that drew, and d
the log-probability of the token under the reference less that under the policy, so that what beta weighs estimates the
divergence from the reference (k3 of Schulman 2020, "Approximating KL divergence").

A teacher adds an advantage of each token: s is its log-probability under the teacher less that under the policy that
drew, which is -KL(policy || teacher) of the next token on average. That is on-policy distillation (Agarwal et al. 2023,
arXiv 2306.13649; Gu et al. 2023, arXiv 2306.08543; Lu 2025, "On-Policy Distillation"). No token is credited with what
comes behind it, as if rewards were discounted by 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from torch import Tensor

Advantage = Literal["centred", "standardised", "leave_one_out", "reward", "none"]
Mean = Literal["tokens", "answers", "constant"]
_DEFAULTS = Defaults("task/policy_loss/base")
_LEAST_DEVIATION = 1e-4  # beside a standard deviation that is divided by


@dataclass(frozen=True)
class PolicyLoss:
    """What is minimised of drawn answers.

    Args:
        advantage: `centred`: r_i less the group's mean (Liu et al. 2025, arXiv 2503.20783, section 3.2);
            `standardised`: this divided by the group's standard deviation (GRPO, Shao et al. 2024, arXiv 2402.03300,
            section 4.1.2); `leave_one_out`: r_i less the mean of the others (RLOO, Ahmadian et al. 2024, arXiv
            2402.14740, eq. 5); `reward`: r_i itself, so that right answers alone are learned where rewards are 0 and 1
            (rejection sampling, Yuan et al. 2023, arXiv 2308.01825, done anew in each step); `none`: 0, so that a
            teacher alone is learned from.
        mean: over what the losses of tokens are averaged. `tokens`: of all answers of the step alike (DAPO, Yu et al.
            2025, arXiv 2503.14476, eq. 12); `answers`: over each answer's tokens, then over answers (GRPO, eq. 3);
            `constant`: their sum is divided by answers times longest answer (Dr. GRPO, arXiv 2503.20783, section 3.2).
        ratio: of each `token`; or of the `sequence`, the geometric mean of its tokens' (GSPO, Zheng et al. 2025, arXiv
            2507.18071, eq. 7).
        clip_low, clip_high: how far below and above 1 the ratio counts; both matter where a step's answers are used
            several times alone, because at first the ratio is 1.
        beta: weight of the divergence from the reference, which is the policy before training.
        teacher: weight c of what a teacher says of each token; 0: there is none.

    Raises:
        ValueError: an impossible value; neither rewards nor a teacher; a teacher's advantages of tokens with the ratio
            of sequences.
    """

    advantage: Advantage = _DEFAULTS("advantage")
    mean: Mean = _DEFAULTS("mean")
    ratio: Literal["token", "sequence"] = _DEFAULTS("ratio")
    clip_low: float = _DEFAULTS("clip_low")
    clip_high: float = _DEFAULTS("clip_high")
    beta: float = _DEFAULTS("beta")
    teacher: float = _DEFAULTS("teacher")

    def __post_init__(self) -> None:
        require(0 < self.clip_low <= 1, "task.policy_loss.clip_low", self.clip_low, "must lie in (0, 1]", "Use 0.2")
        require(self.clip_high > 0, "task.policy_loss.clip_high", self.clip_high, "must be above 0", "Use 0.2")
        for key in ("beta", "teacher"):
            value = getattr(self, key)
            require(value >= 0, f"task.policy_loss.{key}", value, "must not be negative", "Use 0 for none")
        require(self.advantage != "none" or self.needs_teacher, "task.policy_loss.advantage", self.advantage,
                "leaves nothing to learn from without a teacher", "Raise task.policy_loss.teacher")  # fmt: skip
        require(self.ratio == "token" or not self.needs_teacher, "task.policy_loss.ratio", self.ratio,
                "weighs whole answers, and a teacher tells tokens apart", "Use token")  # fmt: skip

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of the reference enter."""
        return self.beta > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether log-probabilities of a teacher enter."""
        return self.teacher > 0

    def teaches(self, advantages: Sequence[float]) -> bool:
        """Whether a group with these advantages has a gradient: a teacher gives it one whatever the rewards are."""
        return self.needs_teacher or any(advantages)

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """Of the G > 1 answers of a group; those that compare answers are 0 where the rewards are equal."""
        G = len(rewards)
        if self.advantage == "none":
            return [0.0] * G
        if self.advantage == "reward":
            return list(rewards)
        mean = sum(rewards) / G
        centred = [0.0 if max(rewards) == min(rewards) else reward - mean for reward in rewards]
        if self.advantage == "leave_one_out":
            return [value * G / (G - 1) for value in centred]
        if self.advantage == "standardised":
            deviation = (sum(value * value for value in centred) / (G - 1)) ** 0.5
            return [value / (deviation + _LEAST_DEVIATION) for value in centred]
        return centred

    def targets(self, lengths: Sequence[int], longest: int) -> int:
        """What the summed loss of answers is divided by.

        Args:
            lengths: tokens of each answer.
            longest: tokens that an answer may have.
        """
        if self.mean == "tokens":
            return sum(lengths)
        return len(lengths) * (longest if self.mean == "constant" else 1)

    def __call__(
        self,
        log_probs: Tensor,
        old: Tensor,
        reference: Tensor | None,
        teacher: Tensor | None,
        advantages: Tensor,
        real: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss of N answers, to be divided by `targets`, and what is logged of each.

        Args:
            log_probs: (N, K) of the policy, with gradients; 0 where there is no token.
            old: (N, K) the same of the policy that drew.
            reference: (N, K) of the reference, where beta is above 0.
            teacher: (N, K) of the teacher, where it has a weight.
            advantages: (N,) of the answers.
            real: (N, K) whether there is a token.

        Returns:
            Scalar; and (N,) each: `clip_share`, of the tokens; with a reference `kl_estimate` and with a teacher
            `teacher_kl_estimate`, the divergence of the policy that drew from it, both in nats per token.
        """
        tokens = real.sum(-1).clamp(min=1)  # (N,)
        change = log_probs - old
        if self.ratio == "sequence":
            change = ((change * real).sum(-1) / tokens)[:, None].expand_as(change)
        ratio, gain, logged = change.exp(), advantages[:, None], {}
        if teacher is not None:
            apart = old - teacher
            gain = gain - self.teacher * apart
            logged["teacher_kl_estimate"] = (apart * real).sum(-1) / tokens
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * gain
        free = ratio * gain
        loss = -free.minimum(clipped)
        logged["clip_share"] = ((clipped < free) & real).sum(-1) / tokens
        if reference is not None:
            difference = reference - log_probs
            divergence = difference.exp() - difference - 1
            loss = loss + self.beta * divergence
            logged["kl_estimate"] = (divergence.detach() * real).sum(-1) / tokens
        each = (loss * real).sum(-1)
        return (each / tokens if self.mean == "answers" else each).sum(), logged
