"""What a few seeds allow one to say: mean, spread, interval of the mean, and whether two means differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom, then for 40, 60, 120 and infinitely many.
_T_1_TO_30 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604,
              2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555,
              2.0518, 2.0484, 2.0452, 2.0423)  # fmt: skip
_T = [(float(df), t) for df, t in enumerate(_T_1_TO_30, 1)] + [(40.0, 2.0211), (60.0, 2.0003), (120.0, 1.9799)]


def t_quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t, interpolated in 1 / degrees of freedom (within 0.5 % from 2 degrees up).

    Args:
        degrees: of freedom, at least 1; Welch's need not be whole.
    """
    points = [*_T, (math.inf, 1.95996)]
    for (low, t_low), (high, t_high) in pairwise(points):
        if degrees <= high:
            share = (1 / low - 1 / degrees) / (1 / low - 1 / high) if degrees > low else 0.0
            return t_low + share * (t_high - t_low)
    return points[-1][1]


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
