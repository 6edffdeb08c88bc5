"""The scaling law, against laws whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from modern_llm.reporting.comparison.scaling_law import ScalingLaw, between, fit, resampled

CHINCHILLA = ScalingLaw(1.69, 406.4, 0.34, 410.7, 0.28)  # Hoffmann et al. 2022, eq. 10
SIZES, LENGTHS = (1e6, 3e6, 1e7, 3e7), (2e7, 8e7, 3e8)
N = [size for size in SIZES for _ in LENGTHS]
D = [length for _ in SIZES for length in LENGTHS]


def test_a_law_is_found_again_from_its_own_losses() -> None:
    found = fit(N, D, [CHINCHILLA.loss(n, d) for n, d in zip(N, D, strict=True)])
    for name, value in vars(CHINCHILLA).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-3), name


def test_without_a_floor_or_an_effect_of_size_the_numbers_are_zero() -> None:
    found = fit(N, D, [3 * d**-0.1 for d in D])
    assert found.floor == pytest.approx(0, abs=0.02)
    assert found.loss(5e6, 1e8) == pytest.approx(3 * 1e8**-0.1, rel=1e-3)


def test_the_best_size_is_the_minimum_on_a_line_of_equal_operations() -> None:
    for flops in (1e17, 1e20):
        sizes = np.exp(np.linspace(math.log(1e5), math.log(1e11), 20001))
        losses = [CHINCHILLA.loss(n, flops / 6 / n) for n in sizes]
        assert CHINCHILLA.best_size(flops) == pytest.approx(sizes[int(np.argmin(losses))], rel=2e-3)
    assert CHINCHILLA.size_share == pytest.approx(0.45, abs=0.005)  # the paper's a
    assert CHINCHILLA.best_size(1e20) / CHINCHILLA.best_size(1e17) == pytest.approx(1000**CHINCHILLA.size_share)


def test_intervals_hold_what_was_drawn_from_them() -> None:
    """Of 12 noisy ladders, the interval of a larger size's loss holds the true one in most."""
    draws, truth = np.random.default_rng(1), CHINCHILLA.loss(1e8, 3e8)
    held = 0
    for seed in range(12):
        losses = [CHINCHILLA.loss(n, d) * (1 + 0.002 * draws.normal()) for n, d in zip(N, D, strict=True)]
        low, high = between([law.loss(1e8, 3e8) for law in resampled(N, D, losses, 30, seed)])
        held += low <= truth <= high
    assert held >= 9


def test_too_few_runs_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 6 runs of two sizes and two lengths"):
        fit(N[:5], D[:5], [1.0] * 5)
    with pytest.raises(ValueError, match="two sizes"):
        fit([1e6] * 6, LENGTHS * 2, [1.0] * 6)
