"""What paired runs allow one to say of a difference: its interval, its p-value among several, whether it could have
been seen, and what it is worth in steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal

from modern_llm.reporting.comparison.intervals import Mean, t_quantile, t_tails

Word = Literal["better", "worse", "no difference", "cannot be told"]
_POWER = 0.8  # with which a smallest visible effect is seen (Cohen 1988)
_MOST_SEEDS = 10_000


def p_value(differences: Mean) -> float:
    """Of Student's paired test on both sides that the mean of differences is 0; 1 for one value, which says nothing."""
    deviation, n = differences.deviation, len(differences.values)
    if deviation is None:
        return 1.0
    if deviation == 0:
        return 1.0 if differences.mean == 0 else 0.0
    return t_tails(differences.mean / (deviation / math.sqrt(n)), n - 1)


def holm(values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted so that the chance of any false find among all of them stays below the level (Holm 1979)."""
    adjusted, largest = dict[str, float](), 0.0
    for place, name in enumerate(sorted(values, key=lambda n: values[n])):
        largest = max(largest, min(1.0, (len(values) - place) * values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in values}


@lru_cache(maxsize=4096)
def power(effect: float, seeds: int, level: float = 0.05) -> float:
    """Chance that a paired test on both sides finds an effect.

    The statistic is (Z + effect sqrt(n)) / S with Z normal and S^2 chi-squared over its n - 1 degrees of freedom: the
    chance given S is the normal one, and is averaged over S.

    Args:
        effect: mean of a difference over its standard deviation.
        seeds: n, at least 2.
        level: of the test.
    """
    freedom, shift = seeds - 1, effect * math.sqrt(seeds)
    critical = t_quantile(freedom, level)
    scale = math.log(2) + 0.5 * freedom * math.log(freedom / 2) - math.lgamma(freedom / 2)
    end, intervals = 1 + 12 / math.sqrt(2 * freedom), 600
    total = 0.0
    for n in range(1, intervals + 1):
        s = n * end / intervals
        density = math.exp(scale + (freedom - 1) * math.log(s) - freedom * s * s / 2)
        found = _normal(shift - critical * s) + _normal(-shift - critical * s)
        total += (1 if n == intervals else 4 if n % 2 else 2) * density * found
    if freedom == 1:  # whose density does not vanish at 0, where every effect is found
        total += math.exp(scale)
    return min(total * end / intervals / 3, 1.0)


def smallest_effect(seeds: int, arms: int = 1) -> float:
    """The effect, in standard deviations of a difference, that is found with a chance of 80 % among so many arms, at
    the level of Holm's first step.

    Args:
        seeds: of each arm, at least 2.
        arms: that are compared with the baseline.
    """
    low, high = 0.0, 1.0
    level = 0.05 / max(arms, 1)
    while power(high, seeds, level) < _POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(middle, seeds, level) < _POWER else (low, middle)
    return high


def seeds_needed(effect: float, arms: int = 1) -> int | None:
    """The fewest seeds that show an effect in standard deviations of a difference; None: more than anyone runs."""
    enough = 2
    while smallest_effect(enough, arms) > effect:
        enough *= 2
        if enough > _MOST_SEEDS:
            return None
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        low, enough = (middle, enough) if smallest_effect(middle, arms) > effect else (low, middle)
    return enough


def _normal(z: float) -> float:
    """Chance that a normal number lies below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


@dataclass(frozen=True)
class Verdict:
    """What is said of an arm.

    Attributes:
        word: better, worse, no difference (larger than `bound`), or cannot be told.
        bound: the largest size of a difference inside the 95 % interval; None without an interval.
    """

    word: Word
    bound: float | None

    @property
    def text(self) -> str:
        """As a person reads it."""
        if self.bound is None:
            return "cannot be told: no interval"
        if self.word == "no difference":
            return f"no difference larger than {self.bound:.3g}"
        return f"cannot be told: at most {self.bound:.3g} either way" if self.word == "cannot be told" else self.word


def verdict(differences: Mean, adjusted: float, lower_is_better: bool, matters: float | None) -> Verdict:
    """What the numbers allow one to say.

    Args:
        differences: of the arm to the baseline, one a seed.
        adjusted: its p-value among all arms, as `holm` gives it.
        lower_is_better: which way the metric is better.
        matters: size of a difference below which it does not matter; None: it is not known.
    """
    if differences.interval is None:
        return Verdict("cannot be told", None)
    bound = max(map(abs, differences.interval))
    if adjusted < 0.05:
        return Verdict("better" if (differences.mean < 0) == lower_is_better else "worse", bound)
    return Verdict("no difference" if matters is not None and bound <= matters else "cannot be told", bound)


@dataclass(frozen=True)
class StepsCurve:
    """How good the baseline is after trainings of several lengths, each of which came to its own end.

    Between two lengths the metric is a straight line over the logarithm of the length; beyond the last ones, the line
    through the last two.

    Attributes:
        points: length as a share of the budget -> mean of the metric; two or more.
    """

    points: dict[float, float]

    def worth(self, value: float) -> tuple[float, bool] | None:
        """The share of the budget after which the baseline is as good, and whether it lies among those that were run.

        Returns:
            None where the curve does not go one way, so that no length can be told.
        """
        shares = sorted(self.points)
        values = [self.points[share] for share in shares]
        steps = [b - a for a, b in pairwise(values)]
        if not steps or any(step * steps[0] <= 0 for step in steps):
            return None
        falls = steps[0] < 0
        place = sum((v > value) == falls and v != value for v in values)  # lengths that are not yet as good
        place = min(max(place, 1), len(shares) - 1)
        x0, x1 = math.log(shares[place - 1]), math.log(shares[place])
        v0, v1 = values[place - 1], values[place]
        share = math.exp(x0 + (x1 - x0) * min(max((value - v0) / (v1 - v0), -20), 20))
        return share, shares[0] <= share <= shares[-1]

    def slope(self) -> float:
        """Change of the metric from 95 % of the budget to all of it: what a twentieth of the steps is worth."""
        shares = sorted(self.points)
        near = min(range(len(shares) - 1), key=lambda n: abs(math.log(shares[n] * shares[n + 1]) / 2))
        over = math.log(shares[near + 1] / shares[near])
        return (self.points[shares[near + 1]] - self.points[shares[near]]) / over * math.log(1 / 0.95)


def trend(differences: Mapping[float, Sequence[float]]) -> Mean | None:
    """Change of an arm's difference each time the size doubles: for every seed the slope of the least squares over the
    logarithm of the size.

    Args:
        differences: parameters of the model -> differences, one a seed, the same seeds at every size.

    Returns:
        None for one size.
    """
    if len(differences) < 2:
        return None
    sizes = [math.log2(size) for size in differences]
    middle = sum(sizes) / len(sizes)
    weights = [size - middle for size in sizes]
    norm = sum(weight**2 for weight in weights)
    seeds = zip(*differences.values(), strict=True)
    return Mean.of([sum(w * d for w, d in zip(weights, of_seed, strict=True)) / norm for of_seed in seeds])
