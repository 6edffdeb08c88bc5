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
_GRID, _ROUNDS = 21, 9  # exponents tried at a time, and how often the grid closes in on the best


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

    pairs = np.array([(p, q) for p in a for q in b])
    columns = np.stack([np.ones((len(pairs), len(y))), n ** -pairs[:, :1], d ** -pairs[:, 1:]], axis=-1) / y[:, None]
    error, numbers = np.full(len(pairs), np.inf), np.zeros((len(pairs), 3))
    at = np.arange(len(pairs))
    for kept in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        part = columns[at][..., kept]
        gram, right = np.einsum("pki,pkj->pij", part, part), part.sum(axis=1)
        gram += 1e-12 * np.trace(gram, axis1=-2, axis2=-1)[:, None, None] * np.eye(len(kept))
        found = np.linalg.solve(gram, right[..., None])[..., 0]
        left = ((np.einsum("pki,pi->pk", part, found) - 1) ** 2).sum(axis=1)
        better = (found >= 0).all(axis=1) & (left < error[at])
        whole = np.zeros((len(at), 3))
        whole[:, kept] = found
        error[at[better]], numbers[at[better]] = left[better], whole[better]
        if len(kept) == 3:
            at = np.flatnonzero(np.isinf(error))  # where all three are not below 0, nothing left out is better
    return error.reshape(len(a), len(b)), numbers.reshape(len(a), len(b), 3)


def resampled(
    parameters: Sequence[float], tokens: Sequence[float], losses: Sequence[float], times: int, seed: int
) -> list[ScalingLaw]:
    """Laws fitted to losses that the fitted law could have given: with relative errors drawn anew from a normal
    distribution, whose spread is drawn as well, because few errors tell it badly (a parametric bootstrap with the
    chi-squared spread of n - 5 degrees of freedom).

    Args:
        parameters, tokens, losses: as in `fit`.
        times: laws.
        seed: of the draws.
    """
    import numpy as np

    law, draws = fit(parameters, tokens, losses), np.random.default_rng(seed)
    told = np.array([law.loss(n, d) for n, d in zip(parameters, tokens, strict=True)])
    left, freedom = float(((np.asarray(losses) / told - 1) ** 2).sum()), max(len(told) - 5, 1)
    found = []
    for _ in range(times):
        spread = math.sqrt(left / draws.chisquare(freedom))
        found.append(fit(parameters, tokens, list(told * (1 + spread * draws.normal(size=len(told))))))
    return found


def between(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of values."""
    import numpy as np

    low, high = np.quantile([value for value in values if math.isfinite(value)] or [math.nan], (0.025, 0.975))
    return float(low), float(high)
