"""How well probabilities tell right answers from wrong ones, as `evaluate.Metric`s: area under the ROC curve, Brier
score and calibration error.

Predictions are probabilities of being right, references are 1 (right) or 0 (wrong).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval, estimate
from modern_llm.evaluation.metrics.calibration import Calibration
from modern_llm.evaluation.metrics.library import Accuracy, ExampleMetric, measure


class ProbabilityMetric(ExampleMetric):
    """A metric of probabilities against 0 and 1."""

    example_type = "float64"

    def per_example(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, np.ndarray]:
        """`squared_error`, (N,): small where a probability is near the truth."""
        probability, truth = self._checked(predictions, references)
        return {"squared_error": np.square(probability - truth)}

    def pairs(self, predictions: Sequence[float], references: Sequence[int]) -> np.ndarray:
        """(N, 2) probability and truth."""
        return np.stack(self._checked(predictions, references), axis=1)

    def _checked(self, predictions: Any, references: Any) -> tuple[np.ndarray, np.ndarray]:
        probability, truth = np.asarray(predictions, float), np.asarray(references, float)
        if probability.shape != truth.shape or probability.ndim != 1 or len(probability) == 0:
            raise ValueError(
                f"predictions of shape {probability.shape} for references of shape {truth.shape}: each reference needs "
                "one probability, and there must be at least one."
            )
        if not ((probability >= 0) & (probability <= 1)).all() or not np.isin(truth, (0, 1)).all():
            raise ValueError("predictions must be probabilities in [0, 1], and references 0 or 1. Check their order.")
        return probability, truth

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=self.__class__.__doc__ or "", citation="", features=datasets.Features(features)
        )


class RocAuc(ProbabilityMetric):
    """Probability that a right answer is scored above a wrong one, a tie counting half: `roc_auc` (Hanley and McNeil
    1982). Samples without right or without wrong answers count as 0.5."""

    def outcomes(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, np.ndarray]:
        return {"roc_auc": self.pairs(predictions, references)}

    def statistic(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        order = np.argsort(outcomes[:, 0], kind="stable")
        probability, truth = outcomes[order].T
        starts = np.flatnonzero(np.diff(probability, prepend=-1.0))  # of every run of equal probabilities
        right, wrong = (np.add.reduceat(counts[:, order] * (truth == t), starts, axis=1) for t in (1, 0))  # (R, G)
        below = wrong.cumsum(1) - wrong / 2  # ties count half
        pairs = right.sum(1) * wrong.sum(1)
        return np.where(pairs > 0, (right * below).sum(1) / np.maximum(pairs, 1), 0.5)


class Brier(ProbabilityMetric):
    """Mean squared difference between probability and truth: `brier` (Brier 1950). Lower is better."""

    def outcomes(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, np.ndarray]:
        return {"brier": self.per_example(predictions, references)["squared_error"]}


class CalibrationError(ProbabilityMetric):
    """Expected calibration error: `ece` (Naeini et al. 2015; Guo et al. 2017, arXiv 1706.04599, eq. 3): the mean over
    answers of how far the share of right ones in their bin is from its mean probability. Lower is better.

    Args:
        bins: equal ranges of probability.
    """

    def __init__(self, bins: int = 10) -> None:
        super().__init__()
        self.bins = bins

    def outcomes(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, np.ndarray]:
        return {"ece": self.pairs(predictions, references)}

    def statistic(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        probability, truth = outcomes.T
        number = np.minimum((probability * self.bins).astype(int), self.bins - 1)
        member = np.eye(self.bins)[number]  # (K, bins)
        gaps = np.abs((counts * (truth - probability)) @ member)  # |right - expected| in each bin
        return gaps.sum(1) / counts.sum(1)


def measure_verifier(
    probabilities: np.ndarray, correct: np.ndarray, problems: Sequence[str], threshold: float, seed: int
) -> dict[str, float]:
    """Every figure of a verifier with its 95 % interval, for which whole problems are drawn.

    Args:
        probabilities, correct: (N,) of the answers.
        problems: (N,) which problem each answers.
        threshold: from which an answer counts as right.
        seed: of the intervals.

    Returns:
        `accuracy`, `roc_auc`, `brier`, `ece`; `base_rate`, the share of right answers; `picked_accuracy`, the share of
        problems whose best-scored answer is right, and `pickable`, of those that have a right one.
    """
    groups = np.unique(np.asarray(problems), return_inverse=True)[1]
    chance, truth = probabilities.tolist(), correct.astype(int).tolist()
    metrics = measure(Accuracy(), (probabilities >= threshold).astype(int).tolist(), truth, seed, groups=groups)
    for metric in (RocAuc(), Brier(), CalibrationError()):
        metrics |= measure(metric, chance, truth, seed, groups=groups)
    picked, pickable = np.zeros(groups.max() + 1), np.zeros(groups.max() + 1)
    for group in range(len(picked)):
        scores, right = probabilities[groups == group], correct[groups == group]
        picked[group], pickable[group] = right[scores == scores.max()].mean(), right.any()
    for name, scores, where in (
        ("base_rate", correct.astype(float), groups),
        ("picked_accuracy", picked, None),
        ("pickable", pickable, None),
    ):
        low, high = bootstrap_interval(scores, seed=seed, groups=where)
        metrics |= {name: estimate(scores), f"{name}_low": low, f"{name}_high": high}
    return metrics


def measure_uncalibrated(
    scores: np.ndarray, correct: np.ndarray, problems: Sequence[str], seed: int
) -> dict[str, float]:
    """`uncalibrated_accuracy` (a half or more counts as right), `uncalibrated_brier` and `uncalibrated_ece` of log-odds
    (N,) taken as they are; the rest as in `measure_verifier`. Calibration keeps the order, and so `roc_auc`."""
    groups = np.unique(np.asarray(problems), return_inverse=True)[1]
    chance, truth = Calibration()(scores), correct.astype(int).tolist()
    metrics = measure(Accuracy(), (chance >= 0.5).astype(int).tolist(), truth, seed, groups=groups)
    for metric in (Brier(), CalibrationError()):
        metrics |= measure(metric, chance.tolist(), truth, seed, groups=groups)
    return {f"uncalibrated_{name}": value for name, value in metrics.items()}
