"""Bootstrap intervals against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modern_llm.evaluation.metrics import bootstrap
from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval, estimate, mean


def binomial_quantile(n: int, p: float, level: float) -> int:
    """The least k with P(X <= k) >= level, by summing."""
    reached = 0.0
    for k in range(n + 1):
        reached += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        if reached >= level:
            return k
    return n


@pytest.mark.parametrize(("hits", "n"), [(60, 200), (1, 100), (99, 100), (700, 1000), (3, 10)])
def test_an_accuracy_has_the_quantiles_of_a_binomial(hits: int, n: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(n) < hits).astype(float)
    low, high = bootstrap_interval(scores, seed=0, resamples=20_000)
    # Near a step of the distribution the drawn quantile may fall on the neighbour.
    assert abs(round(low * n) - binomial_quantile(n, hits / n, 0.025)) <= 1
    assert abs(round(high * n) - binomial_quantile(n, hits / n, 0.975)) <= 1


def test_a_mean_has_the_interval_of_the_central_limit() -> None:
    scores = np.random.default_rng(1).beta(0.5, 2, 3000)
    low, high = bootstrap_interval(scores, seed=0, resamples=4000)
    half = 1.959964 * scores.std() / math.sqrt(len(scores))
    assert low == pytest.approx(scores.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.08 * half)


def test_nineteen_of_twenty_intervals_hold_the_truth() -> None:
    random = np.random.default_rng(2)
    intervals = [bootstrap_interval((random.random(200) < 0.3).astype(float), seed=seed) for seed in range(400)]
    held = np.mean([low <= 0.3 <= high for low, high in intervals])
    assert 0.92 <= held <= 0.98


def test_a_narrower_level_lies_inside() -> None:
    scores = np.random.default_rng(3).random(100)
    wide, narrow = (bootstrap_interval(scores, seed=0, level=level) for level in (0.95, 0.5))
    assert wide[0] < narrow[0] < scores.mean() < narrow[1] < wide[1]


def test_the_seed_alone_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.default_rng(4).random(50)
    first = bootstrap_interval(scores, seed=7)
    np.random.seed(99)
    before = np.random.get_state()[1].copy()
    assert bootstrap_interval(scores, seed=7) == first
    assert bootstrap_interval(scores, seed=8) != first
    assert bootstrap_interval(np.flip(scores), seed=7) == first
    assert (np.random.get_state()[1] == before).all()
    # Drawn 13 resamples at a time, the last time fewer.
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 13 * 50)
    assert bootstrap_interval(scores, seed=7) == first


@pytest.mark.parametrize("scores", [[0.4], [0.0] * 20, [1.0] * 20])
def test_equal_scores_have_an_interval_without_width(scores: list[float]) -> None:
    assert bootstrap_interval(np.array(scores), seed=0) == pytest.approx((scores[0], scores[0]))


def test_an_estimate_is_the_statistic_of_the_examples() -> None:
    scores = np.array([0.0, 0.5, 0.5, 1.0, 0.25])
    assert estimate(scores) == pytest.approx(0.45)
    assert mean(np.array([1.0, 3.0]), np.array([[1, 1], [3, 1], [0, 4]])).tolist() == [2.0, 1.5, 3.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"resamples": 0}, "resamples=0"), ({"level": 95}, "level=95"), ({"level": 0.0}, "level=0.0")],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(np.ones(3), seed=0, **options)


def test_no_example_is_refused() -> None:
    with pytest.raises(ValueError, match="Score some examples"):
        bootstrap_interval(np.zeros(0), seed=0)
