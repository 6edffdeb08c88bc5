"""One answer out of many: by majority, by a verifier, or by both; and how often any of them is right.

- greedy: the most likely answer, with nothing to choose from.
- majority: the most frequent number among the samples (self-consistency, Wang et al. 2022, arXiv 2203.11171).
- verifier: the number of the sample with the largest probability of being right (Cobbe et al. 2021, arXiv 2110.14168).
- weighted: the number with the largest sum of these probabilities (Li et al. 2022, arXiv 2206.02336).
- pass@k: whether any of k samples is right (Chen et al. 2021, arXiv 2107.03374, eq. 1): what a perfect choice would
  reach.

Samples without a number are never chosen. Of equally good numbers, the one that was sampled first wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import combinations
from math import comb
from typing import Any, Literal

import numpy as np

from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
from modern_llm.evaluation.metrics.numbers import flexible_answer, reference_answer, same_number, strict_answer
from modern_llm.evaluation.rollouts import Attempts

READINGS: dict[str, Callable[[str], str | None]] = {"flexible": flexible_answer, "strict": strict_answer}
_SUBSETS = 256  # of the samples, over which a choice among fewer is averaged
_SAME = 1e-9  # weights that differ by less are equal

Combine = Literal["sum", "largest"]


def reference_number(solution: str) -> str:
    """The number of a solution: the text's only one, or the one behind `####`.

    Raises:
        ValueError: there is neither.
    """
    if same_number(solution, solution):
        return flexible_answer(solution) or ""
    return reference_answer(solution)


def vote(answers: Sequence[str | None], weights: Sequence[float] | None = None, combine: Combine = "sum") -> str | None:
    """The number that wins among the samples of one problem, as its first sample writes it.

    Args:
        answers: the number of each sample; None: it has none, and no vote.
        weights: of the samples; None: 1 each, a plain majority.
        combine: what a number gets: the `sum` of its samples' weights, or the `largest` of them.
    """
    numbers = _numbered(answers)
    given = np.ones(len(answers)) if weights is None else np.asarray(weights, float)
    (winner,) = _winners(numbers, given, np.arange(len(answers))[None], combine)
    return None if winner < 0 else answers[int((numbers == winner).argmax())]


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that k of n samples, drawn without replacement, hold a right one, where `right` of the n are right."""
    return 1 - comb(n - right, k) / comb(n, k)


@dataclass(frozen=True)
class Reranked:
    """What came of choosing.

    Attributes:
        metrics: `<way>_em` of every way, the share of problems solved, each with the bounds of its 95 % interval;
            `<way>_gain`, what it solves more than the greedy answer; `sample_em`, of one sample; `pass_at_<n>`;
            `answered_share`, of the samples that have a number.
        curve: rows with `k`, `way`, `solved`, `low`, `high`: the share of problems solved with k samples; and where
            there are greedy answers `gain`, `gain_low`, `gain_high`: what it is more than theirs.
        chosen: way -> the number that it chose for each problem, or None.
        right: way -> whether that is right.
    """

    metrics: dict[str, float]
    curve: list[dict[str, Any]]
    chosen: dict[str, list[str | None]]
    right: dict[str, list[bool]] = field(default_factory=dict)


def rerank(
    attempts: Sequence[Attempts],
    references: Sequence[str],
    *,
    reading: str = "flexible",
    scores: Sequence[Sequence[float]] | None = None,
    seed: int = 0,
) -> Reranked:
    """Choose in every way and measure it, with intervals for which problems are drawn.

    With k of n samples, a figure is the expectation over which k: over all subsets where there are at most 256, else
    over 256 drawn with a fixed seed; pass@k has a closed form.

    Args:
        attempts: of P problems, n samples each.
        references: the right number of each problem.
        reading: how a number is read from a text: `flexible` or `strict`.
        scores: (P, n) a verifier's probabilities that samples are right; None: there is no verifier.
        seed: of the intervals.
    """
    read = READINGS[reading]
    answers = [[read(sample.text) for sample in problem.samples] for problem in attempts]
    right = np.array([[same_number(a, r) for a in row] for row, r in zip(answers, references, strict=True)])  # (P, n)
    n = right.shape[1]
    ways: dict[str, tuple[Combine, np.ndarray]] = {"majority": ("sum", np.ones(right.shape))}
    if scores is not None:
        ways |= {"verifier": ("largest", np.asarray(scores)), "weighted": ("sum", np.asarray(scores))}
    curve: list[dict[str, Any]] = []

    def measured(outcomes: np.ndarray) -> tuple[float, float, float]:
        return float(outcomes.mean()), *bootstrap_interval(outcomes, seed=seed)

    metrics: dict[str, float] = {}
    chosen: dict[str, list[str | None]] = {}
    if all(problem.greedy is not None for problem in attempts):
        chosen["greedy"] = [read(problem.greedy.text) for problem in attempts if problem.greedy is not None]
    chosen |= {
        way: [vote(row, w, combine) for row, w in zip(answers, weights, strict=True)]
        for way, (combine, weights) in ways.items()
    }
    solved = {
        way: np.array([same_number(a, r) for a, r in zip(numbers, references, strict=True)], float)
        for way, numbers in chosen.items()
    }
    outcomes = {f"{way}_em": values for way, values in solved.items()} | {"sample_em": right.mean(1)}
    if "greedy" in solved:
        outcomes |= {f"{way}_gain": values - solved["greedy"] for way, values in solved.items() if way != "greedy"}
    outcomes[f"pass_at_{n}"] = right.any(1).astype(float)
    outcomes["answered_share"] = np.array([np.mean([a is not None for a in row]) for row in answers])
    for name, values in outcomes.items():
        metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"] = measured(values)
    for k in curve_points(n):
        subsets = _subsets(n, k)
        expected = {
            way: np.array(
                [_expected(*problem, subsets, combine) for problem in zip(answers, weights, right, strict=True)]
            )
            for way, (combine, weights) in ways.items()
        }
        expected["pass"] = np.array([pass_at_k(n, int(row.sum()), k) for row in right])
        for way, values in expected.items():
            row = {"k": k, "way": way} | dict(zip(("solved", "low", "high"), measured(values), strict=True))
            if "greedy" in solved:
                gains = measured(values - solved["greedy"])
                row |= dict(zip(("gain", "gain_low", "gain_high"), gains, strict=True))
            curve.append(row)
    return Reranked(metrics, curve, chosen, {way: (values > 0).tolist() for way, values in solved.items()})


def curve_points(n: int) -> list[int]:
    """1, 2, 4 and so on, and n."""
    return sorted({n, *(2**i for i in range(n.bit_length()) if 2**i <= n)})


def _numbered(answers: Sequence[str | None]) -> np.ndarray:
    """(n,) equal numbers get equal places, counted by their first occurrence; -1 where there is none."""
    places: dict[Decimal, int] = {}
    return np.array([-1 if a is None else places.setdefault(Decimal(a), len(places)) for a in answers])


def _subsets(n: int, k: int) -> np.ndarray:
    """(S, k) ascending places of k samples of n: all subsets, or `_SUBSETS` of them."""
    if comb(n, k) <= _SUBSETS:
        return np.array(list(combinations(range(n), k)))
    random = np.random.Generator(np.random.Philox(key=[n, k]))
    return np.sort(np.stack([random.choice(n, k, replace=False) for _ in range(_SUBSETS)]), axis=1)


def _winners(numbers: np.ndarray, weights: np.ndarray, subsets: np.ndarray, combine: Combine) -> np.ndarray:
    """(S,) which number wins in each subset (S, k) of the samples; -1 where no sample has one.

    Args:
        numbers: (n,) of `_numbered`.
        weights: (n,).
    """
    S, k = subsets.shape
    rows, places = np.arange(S), numbers[subsets]  # (S, k); -1 is the last column below
    width = int(numbers.max()) + 2
    totals, first = np.full((S, width), -np.inf), np.full((S, width), k)
    for j in reversed(range(k)):
        at, weight = (rows, places[:, j]), weights[subsets[:, j]]
        before = np.where(np.isinf(totals[at]), 0.0, totals[at]) if combine == "sum" else totals[at]
        totals[at] = before + weight if combine == "sum" else np.maximum(before, weight)
        first[at] = j
    totals[:, -1] = -np.inf
    most = totals.max(1, keepdims=True)
    first[totals < most - _SAME] = k + 1
    return np.where(np.isinf(most[:, 0]), -1, first[:, :-1].argmin(1) if width > 1 else -1)


def _expected(
    answers: Sequence[str | None], weights: np.ndarray, right: np.ndarray, subsets: np.ndarray, combine: Combine
) -> float:
    """Share of the subsets in which the right number wins."""
    numbers = _numbered(answers)
    correct = {int(number) for number in numbers[right]}
    return float(np.isin(_winners(numbers, weights, subsets, combine), list(correct)).mean()) if correct else 0.0
