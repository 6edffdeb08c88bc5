"""What a few seeds allow one to say: mean, spread, interval of the mean, and whether two means differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@lru_cache(maxsize=4096)
def t_quantile(degrees: float, level: float = 0.05) -> float:
    """What the size of Student's t exceeds with a probability of `level`: its 97.5 % quantile for 5 %.

    With t = sqrt(degrees) tan(angle), the probability is an integral of cos(angle) ** (degrees - 1), which is smooth
    and bounded; Newton's method finds the angle where it reaches 1 - level on both sides together.

    Args:
        degrees: of freedom, at least 1; Welch's need not be whole.
        level: above 0 and below 1.
    """
    scale = _scale(degrees)
    angle = 0.0
    for _ in range(200):  # the integral bends down, so each step stays below the solution and comes nearer
        step = ((1 - level) / scale - _integral(angle, degrees - 1)) / math.cos(angle) ** (degrees - 1)
        angle += step
        if step < 1e-12:
            break
    return math.sqrt(degrees) * math.tan(angle)


def t_tails(t: float, degrees: float) -> float:
    """Probability that the size of Student's t exceeds that of `t`."""
    angle = math.atan(abs(t) / math.sqrt(degrees))
    return max(1 - _scale(degrees) * _integral(angle, degrees - 1), 0.0)


def _scale(degrees: float) -> float:
    return 2 * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(math.pi)


def _integral(end: float, power: float, intervals: int = 128) -> float:
    """Of cos ** power from 0 to `end`, by Simpson's rule."""
    width = end / intervals
    inner = sum((4 if n % 2 else 2) * math.cos(n * width) ** power for n in range(1, intervals))
    return (1.0 + inner + math.cos(end) ** power) * width / 3


@dataclass(frozen=True)
class Mean:
    """Mean of the values that different seeds gave.

    Attributes:
        values: one a seed, at least one.
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        """From any sequence of at least one value."""
        return cls(tuple(values))

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean by Student's t; None for one value."""
        if self.deviation is None:
            return None
        half = t_quantile(len(self.values) - 1) * self.deviation / math.sqrt(len(self.values))
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        if self.deviation is None:
            return f"{self.mean:.5g}"
        return f"{self._digits(self.mean)} ± {self._digits(self.deviation)}"

    @property
    def interval_text(self) -> str:
        """`low to high`, with the digits that the spread leaves; empty for one value."""
        return " to ".join(map(self._digits, self.interval)) if self.interval else ""

    def _digits(self, value: float) -> str:
        """With as many decimals as give the deviation two digits."""
        if not self.deviation or not 1e-6 < self.deviation < 1e9:
            return f"{value:.5g}"
        return f"{value:,.{max(0, 1 - math.floor(math.log10(self.deviation)))}f}"


def differ(one: Mean, other: Mean) -> bool | None:
    """Whether two means differ beyond noise: 0 lies outside Welch's 95 % interval of their difference.

    Returns:
        None where either has one value, which says nothing about noise.
    """
    if one.deviation is None or other.deviation is None:
        return None
    parts = [m.deviation**2 / len(m.values) for m in (one, other) if m.deviation is not None]
    variance, gap = sum(parts), abs(one.mean - other.mean)
    if variance == 0:
        return gap > 0
    freedom = variance**2 / sum(p**2 / (len(m.values) - 1) for p, m in zip(parts, (one, other), strict=True))
    return gap > t_quantile(freedom) * math.sqrt(variance)
