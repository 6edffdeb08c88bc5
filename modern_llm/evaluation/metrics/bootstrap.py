"""Confidence intervals by resampling the examples (Efron and Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from modern_llm.checks import require

# What one draw of resamples may hold in memory, in counts of 8 bytes.
_COUNTS_AT_ONCE = 2**22

Statistic = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(K, ...) distinct outcomes, (R, K) how often each occurs in R samples -> (R,) the figure of each sample."""


def mean(outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean score of each sample: (K,) distinct scores, (R, K) counts -> (R,)."""
    return counts @ outcomes / counts.sum(1)


def estimate(outcomes: np.ndarray, statistic: Statistic = mean) -> float:
    """The statistic of the examples themselves: (N, ...) one outcome an example -> a number."""
    distinct, counts = np.unique(outcomes, axis=0, return_counts=True)
    return float(statistic(distinct, counts[None])[0])


def bootstrap_interval(
    outcomes: np.ndarray,
    statistic: Statistic = mean,
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> tuple[float, float]:
    """A percentile bootstrap interval.

    To draw N examples with replacement is to draw the counts of their K distinct outcomes from a multinomial, so that
    accuracy costs two counts a resample, and macro-F1 one for each filled cell of the confusion matrix, whatever N is.

    Outcomes that belong together, such as those of many answers to one problem, say less than as many independent
    ones: with `groups`, whole groups are drawn (the cluster bootstrap, Davison and Hinkley 1997, section 3.8).

    Where all outcomes are equal, as with no right answer among N, the interval has no width. It is not certainty: the
    95 % bound is then about 3 / N (Hanley and Lippman-Hand 1983).

    Args:
        outcomes: (N, ...) one an example: a score, or what the statistic is a function of.
        statistic: of a sample, given the distinct outcomes and their counts.
        seed: same seed, same interval.
        resamples: number of samples drawn.
        level: probability between the bounds.
        groups: (N,) the group of each example, any values; None: each is its own.

    Returns:
        Lower and upper bound, in the unit of the statistic.

    Raises:
        ValueError: no example, no resample, or a level outside (0, 1).
    """
    require(len(outcomes) > 0, "outcomes", len(outcomes), "an interval needs at least one", "Score some examples first")
    require(resamples >= 1, "resamples", resamples, "must be at least 1", "Use 1000")
    require(0 < level < 1, "level", level, "must lie between 0 and 1", "Use 0.95")
    random = np.random.default_rng(seed)
    if groups is None:
        distinct, sizes = np.unique(outcomes, axis=0, return_counts=True)
        drawn_with = np.arange(len(distinct))
    else:
        distinct, (names, drawn_with) = outcomes, np.unique(groups, return_inverse=True)
        sizes = np.ones(len(names), int)
    units = int(sizes.sum())
    at_once = max(1, _COUNTS_AT_ONCE // len(distinct))
    drawn = [
        statistic(distinct, random.multinomial(units, sizes / units, min(at_once, resamples - done))[:, drawn_with])
        for done in range(0, resamples, at_once)
    ]
    low, high = np.quantile(np.concatenate(drawn), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
