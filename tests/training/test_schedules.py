"""Schedules against their closed forms."""

from __future__ import annotations

import math

import pytest

from modern_llm.training.optimization.schedules import WSD, Constant, Cosine, Linear

N = 200


def reference(kind: str, s: int) -> float:
    warmup = 20
    if s < warmup:
        return (s + 1) / 21
    p = (s - warmup) / 180
    if kind == "cosine":
        return 0.1 + 0.9 * (1 + math.cos(math.pi * p)) / 2
    if kind == "linear":
        return 1 - 0.9 * p
    if kind == "wsd":  # the last 45 of the 180 steps fall to 0.1
        return 1.0 if s < 155 else 1 - 0.9 * math.sqrt((s - 155) / 45)
    return 1.0


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("cosine", Cosine(0.1, 0.1)),
        ("linear", Linear(0.1, 0.1)),
        ("wsd", WSD(0.1, 0.1, 0.25)),
        ("constant", Constant(0.1)),
    ],
)
def test_closed_form(kind: str, schedule: Cosine) -> None:
    assert [schedule.factor(s, N) for s in range(N)] == pytest.approx([reference(kind, s) for s in range(N)])


def test_no_step_has_rate_zero_and_short_runs_work() -> None:
    for schedule in (Cosine(), Linear(), WSD(), Constant()):
        for steps in (1, 2, 5):
            assert all(0 < schedule.factor(s, steps) <= 1 for s in range(steps))


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Cosine(warmup_fraction=1.0), "warmup_fraction"),
        (lambda: Linear(final_fraction=2.0), "final_fraction"),
        (lambda: WSD(decay_fraction=0.0), "decay_fraction"),
    ],
)
def test_impossible_values_are_refused(make, key: str) -> None:
    with pytest.raises(ValueError, match=key):
        make()
