"""The statistics of paired runs, against scipy, closed forms and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from modern_llm.reporting.comparison.intervals import Mean, t_quantile, t_tails
from modern_llm.reporting.comparison.paired import (
    StepsCurve,
    holm,
    p_value,
    power,
    seeds_needed,
    smallest_effect,
    trend,
    verdict,
)


@pytest.mark.parametrize("seeds", [2, 3, 5, 12])
def test_the_p_value_is_that_of_the_paired_t_test(seeds: int) -> None:
    draws = np.random.default_rng(seeds)
    for shift in (0.0, 0.5, 3.0):
        one, other = draws.normal(size=seeds), draws.normal(shift, size=seeds)
        expected = stats.ttest_rel(one, other)
        differences = Mean.of([a - b for a, b in zip(one, other, strict=True)])
        assert p_value(differences) == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-9)
        assert differences.interval == pytest.approx(tuple(expected.confidence_interval(0.95)), rel=1e-6)


def test_equal_differences_have_no_noise() -> None:
    assert p_value(Mean.of([0.5, 0.5, 0.5])) == 0
    assert p_value(Mean.of([0.0, 0.0])) == 1
    assert p_value(Mean.of([7.0])) == 1


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 199])
def test_students_t_at_other_levels(freedom: int) -> None:
    for level in (0.05, 0.05 / 7, 0.001):
        assert t_quantile(freedom, level) == pytest.approx(stats.t.ppf(1 - level / 2, freedom), rel=1e-5)
    for t in (0.0, 0.3, -2.0, 6.0):
        assert t_tails(t, freedom) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-4, abs=1e-9)


def test_holm_on_his_own_steps() -> None:
    """Smallest times 4, next times 3 and at least as large, and so on (Holm 1979, section 3)."""
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.9, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_power_is_that_of_the_noncentral_t(seeds: int) -> None:
    for level in (0.05, 0.05 / 6):
        for effect in (0.0, 0.4, 1.5, 4.0):
            critical, shift = stats.t.ppf(1 - level / 2, seeds - 1), effect * math.sqrt(seeds)
            other_side = np.nan_to_num(stats.nct.cdf(-critical, seeds - 1, shift))  # scipy has nan where it vanishes
            expected = stats.nct.sf(critical, seeds - 1, shift) + other_side
            assert power(effect, seeds, level) == pytest.approx(expected, abs=2e-4)


def test_seeds_and_the_smallest_effect_are_each_others_inverse() -> None:
    for seeds in (3, 5, 17):
        assert power(smallest_effect(seeds, 3), seeds, 0.05 / 3) == pytest.approx(0.8, abs=1e-6)
        assert seeds_needed(1.0001 * smallest_effect(seeds, 3), 3) == seeds
    assert seeds_needed(1e-6) is None


def test_null_arms_are_called_better_or_worse_no_more_often_than_the_level() -> None:
    """1,000 ablations of arms that are the baseline: with one arm in 5 % of them it is told from it, with four, any of
    them in at most 5 %; better and worse alike."""
    draws, told = np.random.default_rng(7), {1: 0, 4: 0}
    better = 0
    for _ in range(1000):
        baseline = draws.normal(size=5)
        for arms in told:
            differences = {str(n): Mean.of(list(draws.normal(size=5) - baseline)) for n in range(arms)}
            adjusted = holm({name: p_value(d) for name, d in differences.items()})
            words = [verdict(d, adjusted[name], True, None).word for name, d in differences.items()]
            told[arms] += any(word in ("better", "worse") for word in words)
            better += arms == 1 and words[0] == "better"
    low, high = stats.binom.interval(0.999, 1000, 0.05)
    assert low <= told[1] <= high
    assert told[4] <= high
    assert stats.binom.interval(0.999, 1000, 0.025)[0] <= better <= stats.binom.interval(0.999, 1000, 0.025)[1]


def test_a_real_effect_is_found_as_often_as_the_power_says() -> None:
    draws, effect = np.random.default_rng(3), 1.7
    found = sum(
        verdict(d := Mean.of(list(draws.normal(-effect, size=5))), p_value(d), True, None).word == "better"
        for _ in range(1000)
    )
    assert found / 1000 == pytest.approx(power(effect, 5), abs=0.05)


@pytest.mark.parametrize(
    ("values", "adjusted", "lower", "matters", "word", "text"),
    [
        ([-0.2, -0.21, -0.19], 0.001, True, None, "better", "better"),
        ([-0.2, -0.21, -0.19], 0.001, False, None, "worse", "worse"),
        ([-0.01, 0.01, 0.0], 0.9, True, 0.1, "no difference", "no difference larger than 0.0248"),
        ([-0.01, 0.01, 0.0], 0.9, True, 0.02, "cannot be told", "cannot be told: at most 0.0248 either way"),
        ([-0.01, 0.01, 0.0], 0.9, True, None, "cannot be told", "cannot be told: at most 0.0248 either way"),
        ([-0.01], 1.0, True, 0.1, "cannot be told", "cannot be told: no interval"),
    ],
)
def test_words_follow_from_the_numbers(
    values: list[float], adjusted: float, lower: bool, matters: float | None, word: str, text: str
) -> None:
    found = verdict(Mean.of(values), adjusted, lower, matters)
    assert (found.word, found.text) == (word, text)


def test_what_a_value_is_worth_in_steps_on_a_power_law() -> None:
    """Between lengths close to each other, a straight line over the logarithm is the power law itself."""
    shares = [0.5 * 1.02**n for n in range(71)]
    curve = StepsCurve({share: 3 + 0.4 * share**-0.3 for share in shares})
    for share in (0.6, 0.9, 1.3):
        worth = curve.worth(3 + 0.4 * share**-0.3)
        assert worth is not None
        assert worth[0] == pytest.approx(share, rel=1e-3)
        assert worth[1]
    beyond = curve.worth(3 + 0.4 * 2.5**-0.3)
    assert beyond is not None
    assert beyond[0] > 2
    assert not beyond[1]
    assert curve.slope() == pytest.approx(0.4 - 0.4 * 0.95**-0.3, rel=0.03)


def test_a_metric_that_grows_is_worth_steps_too_and_one_that_turns_is_not() -> None:
    rising = StepsCurve({0.5: 0.2, 1.0: 0.4, 2.0: 0.6})
    assert rising.worth(0.5) == (pytest.approx(math.sqrt(2)), True)
    assert StepsCurve({0.5: 2.0, 1.0: 1.0, 2.0: 1.5}).worth(1.2) is None


def test_the_trend_is_the_mean_of_the_seeds_slopes() -> None:
    sizes = [1e5, 4e5, 9e5]
    seeds = np.random.default_rng(0).normal(size=(3, 4))
    found = trend({size: list(row) for size, row in zip(sizes, seeds, strict=True)})
    expected = [np.polyfit(np.log2(sizes), seeds[:, n], 1)[0] for n in range(4)]
    assert found is not None
    assert found.values == pytest.approx(expected)
    assert trend({1e5: [0.1, 0.2]}) is None
