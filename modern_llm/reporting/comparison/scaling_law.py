"""The law L(N, D) = E + A / N^a + B / D^b (Hoffmann et al. 2022, arXiv 2203.15556, eq. 2), fitted to losses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

LEAST_POINTS = 6  # one more than the law has numbers
_EXPONENTS = (0.02, 2.0)  # between which a and b are looked for
_GRID, _ROUNDS = 41, 7  # exponents tried at a time, and how often the grid closes in on the best


@dataclass(frozen=True)
class ScalingLaw:
    """L(N, D) in nats per token of N parameters and D tokens.

    Attributes:
        floor: E, the loss that nothing removes.
        size_factor, size_exponent: A and a.
        data_factor, data_exponent: B and b.
    """

    floor: float
    size_factor: float
    size_exponent: float
    data_factor: float
    data_exponent: float

    def loss(self, parameters: float, tokens: float) -> float:
        """What the law says."""
        of_size = self.size_factor * parameters**-self.size_exponent
        return self.floor + of_size + self.data_factor * tokens**-self.data_exponent

    def best_size(self, flops: float) -> float:
        """Parameters with which C = 6 N D operations give the lowest loss: N = G (C / 6)^(b / (a + b)) with
        G = (a A / (b B))^(1 / (a + b)) (eq. 4); nan where size or data does not help."""
        a, b = self.size_exponent, self.data_exponent
        if self.size_factor <= 0 or self.data_factor <= 0:
            return math.nan
        scale = (a * self.size_factor / (b * self.data_factor)) ** (1 / (a + b))
        return float(scale * (flops / 6) ** (b / (a + b)))

    @property
    def size_share(self) -> float:
        """Exponent with which the best size grows with the operations, b / (a + b)."""
        return self.data_exponent / (self.size_exponent + self.data_exponent)


@dataclass(frozen=True)
class Rung:
    """One size after one length.

    Attributes:
        size: its name.
        seed: of the run.
        parameters: that compute: operations of training per token over 6, so that C = 6 N D. Tables that are looked
            up do not count, the head does.
        tokens, flops, seconds: of its training; seconds of the branch alone where it is one.
        loss: at its end.

    """

    size: str
    seed: int
    parameters: float
    tokens: float
    flops: float
    seconds: float
    loss: float


def fit(parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> ScalingLaw:
    """The law with the least squares of relative errors: for given exponents it is linear in E, A and B, which are not
    let below 0; the exponents are found on a grid that closes in.

    Args:
        parameters, tokens, losses: of each run, at least 6.

    Raises:
        ValueError: fewer, or sizes or lengths that are all the same.
    """
    import numpy as np

    n, d, y = (np.asarray(values, dtype=float) for values in (parameters, tokens, losses))
    if len(y) < LEAST_POINTS or len({*n}) < 2 or len({*d}) < 2:
        raise ValueError(f"a scaling law takes {LEAST_POINTS} runs of two sizes and two lengths or more; got {len(y)}.")
    scale_n, scale_d = np.exp(np.log(n).mean()), np.exp(np.log(d).mean())  # else the columns differ by many orders
    low, high = np.full(2, math.log(_EXPONENTS[0])), np.full(2, math.log(_EXPONENTS[1]))
    best: tuple[float, float] = (1.0, 1.0)
    for _ in range(_ROUNDS):
        axes = [np.exp(np.linspace(low[i], high[i], _GRID)) for i in (0, 1)]
        errors, _ = _solved(n / scale_n, d / scale_d, y, *axes)
        i, j = np.unravel_index(np.argmin(errors), errors.shape)
        best = float(axes[0][i]), float(axes[1][j])
        steps = (high - low) / (_GRID - 1)
        centre = np.log(best)
        low = np.maximum(centre - 4 * steps, math.log(_EXPONENTS[0]))
        high = np.minimum(centre + 4 * steps, math.log(_EXPONENTS[1]))
    _, numbers = _solved(n / scale_n, d / scale_d, y, np.array([best[0]]), np.array([best[1]]))
    floor, of_size, of_data = (float(value) for value in numbers[0, 0])
    return ScalingLaw(floor, of_size * scale_n ** best[0], best[0], of_data * scale_d ** best[1], best[1])


def _solved(n: np.ndarray, d: np.ndarray, y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared relative error, (len(a), len(b)), and the best E, A and B of each pair of exponents, (…, 3): of all the
    subsets of the three that are left out as 0, the best solution that has none below 0."""
    import numpy as np

    shape = (len(a), len(b), len(y))
    columns = np.stack([
        np.broadcast_to(1.0, shape),
        np.broadcast_to(n ** -a[:, None, None], shape),
        np.broadcast_to(d ** -b[None, :, None], shape),
    ], axis=-1) / y[:, None]  # fmt: skip
    error = np.full(shape[:2], np.inf)
    numbers = np.zeros((*shape[:2], 3))
    for kept in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        part = columns[..., kept]
        gram, right = np.einsum("abki,abkj->abij", part, part), part.sum(axis=2)
        ridge = 1e-12 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(len(kept))
        found = np.linalg.solve(gram + ridge, right[..., None])[..., 0]
        left = ((part @ found[..., None])[..., 0] - 1) ** 2
        better = (found >= 0).all(axis=-1) & (left.sum(axis=-1) < error)
        error = np.where(better, left.sum(axis=-1), error)
        whole = np.zeros_like(numbers)
        whole[..., kept] = found
        numbers = np.where(better[..., None], whole, numbers)
    return error, numbers


def resampled(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], times: int, seed: int
) -> list[ScalingLaw]:
    """Laws fitted to losses that the fitted law and its own errors, drawn anew, could have given: what noise does to a
    fit (Efron 1979's bootstrap of residuals, which are relative here).

    Args:
        parameters, tokens, losses: as in `fit`.
        times: laws.
        seed: of the draws.
    """
    import numpy as np

    law, draws = fit(parameters, tokens, losses), np.random.default_rng(seed)
    told = np.array([law.loss(n, d) for n, d in zip(parameters, tokens, strict=True)])
    errors = np.asarray(losses) / told - 1
    # A fit leaves smaller errors than there are: five numbers are fitted.
    errors *= math.sqrt(len(errors) / max(len(errors) - 5, 1))
    return [fit(parameters, tokens, list(told * (1 + draws.choice(errors, len(errors))))) for _ in range(times)]


def between(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of values."""
    import numpy as np

    low, high = np.quantile([value for value in values if math.isfinite(value)] or [math.nan], (0.025, 0.975))
    return float(low), float(high)
