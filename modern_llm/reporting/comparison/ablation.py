"""What the runs of an ablation say: for every arm the paired difference, its verdict, and what it is worth in steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modern_llm.reporting.comparison.intervals import Mean
from modern_llm.reporting.comparison.paired import (
    StepsCurve,
    Verdict,
    holm,
    p_value,
    seeds_needed,
    smallest_effect,
    trend,
    verdict,
)
from modern_llm.reporting.record import RunRecord

BASELINE, A_A = "baseline", "a_a"
SEEDS_OF_A_VERDICT = 5  # fewer make an interval, and Student's t of two seeds finds next to nothing
_COSTS = ("tokens", "flops", "seconds", "steps", "parameters")


@dataclass(frozen=True)
class Run:
    """One run of an ablation.

    Attributes:
        size, arm: what was run.
        seed: its number from 0, by which runs are paired.
        share: its length, as a share of the budget.
        record: what it left.
        value: of the metric that is compared; None where it has none.
    """

    size: str
    arm: str
    seed: int
    share: float
    record: RunRecord
    value: float | None


@dataclass(frozen=True)
class Outcome:
    """What is known of an arm at a size.

    Attributes:
        size, arm: which.
        parameters: of the baseline of that size.
        seeds: runs that were asked for.
        failed: reason -> runs of it without a value.
        values: of its runs; None: it has none.
        differences: to the baseline of the same seed; None: of the baseline, or where no pair is whole.
        p: adjusted for all arms of this size (Holm); None where there is no test.
        words: the verdict; None of the baseline, of the A/A arm, with failed runs and below five seeds.
        worth: what the baseline's run would have to be lengthened by for the same, as a share of its steps, and that
            share at both ends of the interval; None where it cannot be told.
        inside: whether all three lie among the lengths that were run.
        costs: means of tokens, flops, seconds, steps and parameters of its runs.
        trend: change of the difference each time the size doubles, with its interval; None for one size.
        smallest: the smallest effect that so many seeds find with a chance of 80 %, with this arm's noise.
        enough: seeds that would find a difference that matters; None: not known, or more than 10,000.
    """

    size: str
    arm: str
    parameters: float
    seeds: int
    failed: dict[str, int]
    values: Mean | None
    differences: Mean | None = None
    p: float | None = None
    words: Verdict | None = None
    worth: tuple[float, float, float] | None = None
    inside: bool = True
    costs: dict[str, float] = field(default_factory=dict)
    trend: Mean | None = None
    smallest: float | None = None
    enough: int | None = None

    @property
    def name(self) -> str:
        """Arm and size."""
        return f"{self.arm} ({self.size})" if self.size else self.arm

    @property
    def said(self) -> str:
        """The verdict in words."""
        if self.failed:
            told = "; ".join(f"{why} in {count} of {self.seeds} seeds" for why, count in self.failed.items())
            return f"fails: {told}"
        if self.arm == BASELINE:
            return ""
        if self.arm == A_A:
            return "noise alone"
        if self.words is None:
            return f"no verdict: it takes {SEEDS_OF_A_VERDICT} seeds"
        return self.words.text


def outcomes(
    runs: Sequence[Run], parameters: Mapping[str, float], lower_is_better: bool, matters: float | None
) -> list[Outcome]:
    """Of every arm at every size, sizes in their order, the baseline of each first.

    Args:
        runs: all of them.
        parameters: size -> parameters of its baseline.
        lower_is_better: of the metric.
        matters: size of a difference that matters; None: what a twentieth of the steps is worth at that size.
    """
    found: list[Outcome] = []
    for size, weights in parameters.items():
        own = [run for run in runs if run.size == size]
        found += _of_one_size(own, size, weights, lower_is_better, matters)
    return [_with_trend(outcome, found) for outcome in found]


def _of_one_size(
    runs: Sequence[Run], size: str, weights: float, lower_is_better: bool, matters: float | None
) -> list[Outcome]:
    whole = [run for run in runs if run.share == 1]
    arms = list(dict.fromkeys([BASELINE, A_A, *(run.arm for run in whole)]))
    by_arm = {arm: {run.seed: run for run in whole if run.arm == arm} for arm in arms}
    arms = [arm for arm in arms if by_arm[arm]]
    differences = {arm: _paired(by_arm[arm], by_arm[BASELINE]) for arm in arms if arm != BASELINE}
    tested = {arm: p_value(d) for arm, d in differences.items() if d is not None and arm != A_A}
    adjusted = holm(tested)
    curve = _curve(runs)
    if matters is None and curve is not None:
        matters = abs(curve.slope())
    made = []
    for arm in arms:
        failed = _failures(by_arm[arm].values())
        values = [run.value for run in by_arm[arm].values() if run.value is not None]
        outcome: dict[str, Any] = {
            "size": size, "arm": arm, "parameters": weights, "seeds": len(by_arm[arm]), "failed": failed,
            "values": Mean.of(values) if values else None, "costs": _costs(by_arm[arm].values()),
        }  # fmt: skip
        d = differences.get(arm)
        if d is not None:
            outcome["differences"] = d
            if d.deviation:
                others = max(len(tested), 1)
                outcome["smallest"] = smallest_effect(len(d.values), others) * d.deviation
                if matters:
                    outcome["enough"] = seeds_needed(matters / d.deviation, others)
            if arm != A_A:
                outcome["p"] = adjusted[arm]
                if len(d.values) >= SEEDS_OF_A_VERDICT and not failed:
                    outcome["words"] = verdict(d, adjusted[arm], lower_is_better, matters)
            if curve is not None:
                outcome |= _worth(curve, d)
        made.append(Outcome(**outcome))
    return made


def _paired(own: Mapping[int, Run], baseline: Mapping[int, Run]) -> Mean | None:
    """Differences of the seeds that both have."""
    pairs = [(own[seed].value, baseline[seed].value) for seed in own if seed in baseline]
    values = [a - b for a, b in pairs if a is not None and b is not None]
    return Mean.of(values) if values else None


def _failures(runs: Any) -> dict[str, int]:
    """Why runs have no value -> how many."""
    reasons: dict[str, int] = {}
    for run in runs:
        if run.value is None:
            why = "diverged" if run.record.diverged else run.record.why or run.record.status
            reasons[why] = reasons.get(why, 0) + 1
    return reasons


def _costs(runs: Any) -> dict[str, float]:
    found = {}
    for name in _COSTS:
        values = [run.record.metrics[name] for run in runs if name in run.record.metrics]
        if values:
            found[name] = statistics.fmean(values)
    return found


def _curve(runs: Sequence[Run]) -> StepsCurve | None:
    """The baseline over lengths. Lengths that fewer seeds ran are set against the same seeds of the whole one, so that
    seeds do not bend it."""
    baseline = {(run.share, run.seed): run.value for run in runs if run.arm == BASELINE and run.value is not None}
    whole = [value for (share, _), value in baseline.items() if share == 1]
    shares = sorted({share for share, _ in baseline} - {1.0})
    if not whole or not shares:
        return None
    points = {1.0: statistics.fmean(whole)}
    for share in shares:
        steps = [
            value - baseline[1.0, seed]
            for (s, seed), value in baseline.items()
            if s == share and (1.0, seed) in baseline
        ]
        if steps:
            points[share] = points[1.0] + statistics.fmean(steps)
    return StepsCurve(points) if len(points) > 1 else None


def _worth(curve: StepsCurve, differences: Mean) -> dict[str, Any]:
    """What a difference is worth in steps, with its interval."""
    at = [differences.mean, *(differences.interval or (differences.mean, differences.mean))]
    found = [curve.worth(curve.points[1.0] + d) for d in at]
    if any(share is None for share in found):
        return {}
    shares = [share for share in found if share is not None]
    middle, *ends = (share - 1 for share, _ in shares)
    return {"worth": (middle, min(ends), max(ends)), "inside": all(inside for _, inside in shares)}


def _with_trend(outcome: Outcome, found: Sequence[Outcome]) -> Outcome:
    """The same with how its difference goes with the size, where every size has all seeds."""
    same = [o for o in found if o.arm == outcome.arm and o.differences is not None]
    if len(same) < 2 or outcome.differences is None or outcome.arm == A_A:
        return outcome
    lengths = {len(o.differences.values) for o in same if o.differences is not None}
    sizes = {o.parameters: o.differences.values for o in same if o.differences is not None}
    if len(lengths) > 1 or len(sizes) < 2 or not all(math.isfinite(size) and size > 0 for size in sizes):
        return outcome
    return Outcome(**(vars(outcome) | {"trend": trend(sizes)}))
