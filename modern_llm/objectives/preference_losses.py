"""Losses on the log-probabilities of a preferred and a rejected answer: settings and formula of each. Torch is imported
where a formula is computed, so that a configuration is checked without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modern_llm.checks import require
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PairLogProbs:
    """What is known of B pairs (prompt x, chosen answer y_w, rejected answer y_l), in nats.

    Args:
        chosen, rejected: (B,) log pi(y | x), summed over the tokens of the answer.
        chosen_tokens, rejected_tokens: (B,) tokens of the answers, end of text included.
        reference_chosen, reference_rejected: (B,) the same log-probabilities under the reference model; zeros for
            a loss that needs none.
        reference_point: scalar, from which KTO counts gains and losses; None where nothing is known of it.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    reference_point: Tensor | None = None

    @classmethod
    def of(cls, sums: Tensor, tokens: Tensor, reference: Tensor, mismatched: Tensor | None = None) -> PairLogProbs:
        """From what is known of every answer.

        Args:
            sums, tokens, reference: (B, 2) of chosen and rejected answers; or (B, 3), the last of mismatched ones.
            mismatched: scalar, the mean log-ratio of mismatched answers of more pairs than these; None: of these.
        """
        if mismatched is None and sums.shape[1] > 2:
            mismatched = (sums[:, 2] - reference[:, 2]).mean()
        point = None if mismatched is None else mismatched.detach().clamp(min=0)
        (chosen, rejected), (reference_chosen, reference_rejected) = sums[:, :2].unbind(1), reference[:, :2].unbind(1)
        return cls(chosen, rejected, tokens[:, 0], tokens[:, 1], reference_chosen, reference_rejected, point)

    @property
    def chosen_ratio(self) -> Tensor:
        """(B,) log pi(y_w | x) / pi_ref(y_w | x)."""
        return self.chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """(B,) log pi(y_l | x) / pi_ref(y_l | x)."""
        return self.rejected - self.reference_rejected


class PreferenceLoss(Protocol):
    """What the objective asks of a loss."""

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities of a reference model enter."""

    @property
    def needs_mismatched(self) -> bool:
        """Whether answers to other prompts enter, through `PairLogProbs.reference_point`."""

    def rewards(self, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """(B,) implicit rewards of the chosen and of the rejected answers; their difference is the margin."""

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        """(B,) loss of each pair."""


class _Loss:
    """What most losses share: beta is above 0, and no answers to other prompts enter."""

    beta: float
    needs_mismatched = False

    def __post_init__(self) -> None:
        require(self.beta > 0, "task.loss.beta", self.beta, "must be above 0", "Use 0.1")


class _OnLogRatios(_Loss):
    """A loss on DPO's implicit rewards."""

    needs_reference = True

    def rewards(self, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """beta times the log-ratios (Rafailov et al. 2023, arXiv 2305.18290, eq. 5, up to a constant of the prompt)."""
        return self.beta * pairs.chosen_ratio, self.beta * pairs.rejected_ratio


_SIGMOID_DPO = Defaults("task/loss/dpo")


@dataclass(frozen=True)
class SigmoidDPO(_OnLogRatios):
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), with conservative label
    smoothing (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO", eq. 3).

    With margin m = beta (log-ratio of chosen - log-ratio of rejected) and smoothing e:
    -(1 - e) log sigmoid(m) - e log sigmoid(-m). To it may be added a times the mean negative log-likelihood of the
    chosen answer's tokens, which keeps it from becoming less likely together with the rejected one (RPO, Pang et al.
    2024, arXiv 2404.19733, eq. 1).

    Args:
        beta: strength of the tie to the reference.
        label_smoothing: probability e that a preference is the wrong way round; 0 is DPO.
        chosen_nll: weight a of the chosen answer's likelihood; 0 is DPO.
    """

    beta: float = _SIGMOID_DPO("beta")
    label_smoothing: float = _SIGMOID_DPO("label_smoothing")
    chosen_nll: float = _SIGMOID_DPO("chosen_nll")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.chosen_nll >= 0, "task.loss.chosen_nll", self.chosen_nll, "must not be negative", "Use 0 for none")
        require(0 <= self.label_smoothing < 0.5, "task.loss.label_smoothing", self.label_smoothing,
                "must lie in [0, 0.5)", "Use 0 for clean preferences")  # fmt: skip

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        from torch.nn import functional as F

        chosen, rejected = self.rewards(pairs)
        margin = chosen - rejected
        loss = -(1 - self.label_smoothing) * F.logsigmoid(margin)
        if self.label_smoothing:
            loss = loss - self.label_smoothing * F.logsigmoid(-margin)
        return loss - self.chosen_nll * pairs.chosen / pairs.chosen_tokens if self.chosen_nll else loss


_HINGE_DPO = Defaults("task/loss/hinge")


@dataclass(frozen=True)
class HingeDPO(_OnLogRatios):
    """max(0, 1 - m) on DPO's margin m (SLiC, Zhao et al. 2023, arXiv 2305.10425, eq. 1, in the form of Liu et al. 2023,
    arXiv 2309.06657, eq. 9, with gamma = beta).

    Args:
        beta: strength of the tie to the reference.
    """

    beta: float = _HINGE_DPO("beta")

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        chosen, rejected = self.rewards(pairs)
        return (1 - (chosen - rejected)).relu()


_IPO = Defaults("task/loss/ipo")


@dataclass(frozen=True)
class IPO(_Loss):
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17): (h - 1 / (2 beta))^2.

    The paper writes h as the difference of the answers' whole log-ratios. Here, as in TRL and in the authors' own
    experiments, each log-ratio is divided by the tokens of its answer, so that beta means the same for answers of any
    length.

    Args:
        beta: strength of the tie to the reference, the paper's tau.
    """

    beta: float = _IPO("beta")
    needs_reference = True

    def rewards(self, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """beta times the log-ratios per token."""
        return (
            self.beta * pairs.chosen_ratio / pairs.chosen_tokens,
            self.beta * pairs.rejected_ratio / pairs.rejected_tokens,
        )

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        chosen, rejected = self.rewards(pairs)
        return ((chosen - rejected) / self.beta - 1 / (2 * self.beta)).square()


_SIM_PO = Defaults("task/loss/simpo")


@dataclass(frozen=True)
class SimPO(_Loss):
    """Simple preference optimisation (Meng et al. 2024, arXiv 2405.14734, eq. 6): without a reference, on
    log-probabilities per token, -log sigmoid(beta log pi(y_w | x) / |y_w| - beta log pi(y_l | x) / |y_l| - gamma).

    Args:
        beta: scale of the reward.
        gamma: margin that the chosen answer's reward is to have over the rejected one's.
    """

    beta: float = _SIM_PO("beta")
    gamma: float = _SIM_PO("gamma")
    needs_reference = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.gamma >= 0, "task.loss.gamma", self.gamma, "must not be negative", "Use 0 for none")

    def rewards(self, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """beta times the log-probabilities per token (eq. 4)."""
        return self.beta * pairs.chosen / pairs.chosen_tokens, self.beta * pairs.rejected / pairs.rejected_tokens

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        from torch.nn import functional as F

        chosen, rejected = self.rewards(pairs)
        return -F.logsigmoid(chosen - rejected - self.gamma)


_ORPO = Defaults("task/loss/orpo")


@dataclass(frozen=True)
class ORPO(_Loss):
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7): finetuning on the chosen
    answer and the preference at once, without a reference.

    With the probability per token p = exp(log pi(y | x) / |y|) and odds = p / (1 - p):
    -log pi(y_w | x) / |y_w| - beta log sigmoid(log odds(y_w | x) - log odds(y_l | x)). The first part, the loss of the
    answer's tokens, is a mean over each answer; it leaves out the prompt.

    Args:
        beta: weight of the preference beside the finetuning, the paper's lambda.
    """

    beta: float = _ORPO("beta")
    needs_reference = False

    def rewards(self, pairs: PairLogProbs) -> tuple[Tensor, Tensor]:
        """Log-odds of the answers (eq. 4); their difference is the log of the odds ratio."""
        return _log_odds(pairs.chosen / pairs.chosen_tokens), _log_odds(pairs.rejected / pairs.rejected_tokens)

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        from torch.nn import functional as F

        chosen, rejected = self.rewards(pairs)
        return -pairs.chosen / pairs.chosen_tokens - self.beta * F.logsigmoid(chosen - rejected)


def _log_odds(log_probs: Tensor) -> Tensor:
    """log p / (1 - p) from log p, exact to rounding also where p is near 1, as exp and 1 - p alone would not be; where
    p rounds to 1, as if it were one rounding below."""
    import torch

    below = log_probs.clamp(max=-torch.finfo(log_probs.dtype).eps)
    return below - (-torch.expm1(below)).log()


_KTO = Defaults("task/loss/kto")


@dataclass(frozen=True)
class KTO(_OnLogRatios):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and 8), where each chosen answer
    is a desirable one and each rejected answer an undesirable one.

    With the log-ratio r = log pi(y | x) / pi_ref(y | x) and the reference point z0, the loss of a desirable answer is
    w_d (1 - sigmoid(beta (r - z0))), that of an undesirable one w_u (1 - sigmoid(beta (z0 - r))), and that of a pair
    the mean of its two.

    z0 estimates the divergence KL(pi || pi_ref): the mean log-ratio of answers to other prompts, over the whole batch,
    at least 0. It has no gradient.

    Args:
        beta: how soon gains and losses saturate: risk aversion.
        desirable_weight, undesirable_weight: w_d and w_u, the paper's lambdas.
    """

    beta: float = _KTO("beta")
    desirable_weight: float = _KTO("desirable_weight")
    undesirable_weight: float = _KTO("undesirable_weight")
    needs_mismatched = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("desirable_weight", "undesirable_weight"):
            value = getattr(self, key)
            require(value >= 0, f"task.loss.{key}", value, "must not be negative", "Use 1.0")
        both = self.desirable_weight + self.undesirable_weight
        require(both > 0, "task.loss.desirable_weight", self.desirable_weight,
                "and task.loss.undesirable_weight are both 0, so that nothing is learned", "Raise one")  # fmt: skip

    def __call__(self, pairs: PairLogProbs) -> Tensor:
        if pairs.reference_point is None:
            raise ValueError("KTO needs a reference point. Give the pairs mismatched answers (with_mismatched).")
        chosen, rejected = self.rewards(pairs)
        point = self.beta * pairs.reference_point
        desirable = self.desirable_weight * (point - chosen).sigmoid()  # 1 - sigmoid(x) is sigmoid(-x)
        return (desirable + self.undesirable_weight * (rejected - point).sigmoid()) / 2
