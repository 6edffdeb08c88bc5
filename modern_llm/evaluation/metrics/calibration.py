"""From a verifier's scores to probabilities and decisions: both are fitted on answers that are not reported on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_LEAST_SLOPE = 0.01  # where scores tell nothing: all probabilities are near the base rate, in the order of the scores


@dataclass(frozen=True)
class Calibration:
    """Platt scaling (Platt 1999, "Probabilistic outputs for support vector machines"): sigmoid(slope * score + offset).

    Attributes:
        slope: above 0, so that the order of the answers stays; below 1 where the verifier is too sure.
        offset: in log-odds.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """(N,) log-odds that answers are right -> (N,) probabilities."""
        return 1 / (1 + np.exp(-np.clip(self.slope * scores + self.offset, -500, 500)))


def fit_calibration(scores: np.ndarray, correct: np.ndarray) -> Calibration:
    """The likeliest calibration by Newton's method, with Platt's targets, which keep it finite where one threshold
    separates all answers. Where scores are no better than chance, so that their order would have to be turned, it is
    kept, and the probabilities are all near the share of right answers.

    Args:
        scores: (N,) log-odds.
        correct: (N,) whether each answer is right.
    """
    right, wrong = int(correct.sum()), int((~correct).sum())
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
    inputs = np.stack([scores, np.ones(len(scores))], axis=1)  # (N, 2)

    def loss(weights: np.ndarray) -> float:
        z = inputs @ weights
        return float((np.logaddexp(0, z) - target * z).sum())

    weights = np.array([0.0, np.log((right + 1) / (wrong + 1))])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(inputs @ weights, -500, 500)))
        gradient = inputs.T @ (p - target)
        curvature = (inputs * (p * (1 - p))[:, None]).T @ inputs + 1e-9 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while size > 1e-6 and loss(weights - size * step) > loss(weights):
            size /= 2
        weights = weights - size * step
        if float(np.abs(size * step).max()) < 1e-9:
            break
    if weights[0] < _LEAST_SLOPE:
        return Calibration(_LEAST_SLOPE, float(np.log((right + 1) / (wrong + 1)) - _LEAST_SLOPE * scores.mean()))
    return Calibration(float(weights[0]), float(weights[1]))


def choose_threshold(probabilities: np.ndarray, correct: np.ndarray) -> float:
    """The probability from which an answer counts as right, with the best accuracy on these answers; of equally good
    ones the nearest to a half.

    Candidates lie half-way between neighbouring probabilities, and at 0.5.
    """
    distinct = np.unique(probabilities)
    candidates = np.unique([0.5, *((distinct[1:] + distinct[:-1]) / 2)])
    accuracy = ((probabilities[:, None] >= candidates) == correct[:, None]).mean(0)
    best = candidates[accuracy >= accuracy.max() - 1e-12]
    return float(best[np.abs(best - 0.5).argmin()])


def reliability(probabilities: np.ndarray, correct: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """The calibration curve: for each of `bins` equal ranges of probability that holds any answer, its ends, the
    number of answers, their mean probability and the share that is right."""
    number = np.minimum((probabilities * bins).astype(int), bins - 1)
    return [
        {
            "from": k / bins,
            "to": (k + 1) / bins,
            "answers": int((number == k).sum()),
            "mean_probability": float(probabilities[number == k].mean()),
            "share_right": float(correct[number == k].mean()),
        }
        for k in range(bins)
        if (number == k).any()
    ]
