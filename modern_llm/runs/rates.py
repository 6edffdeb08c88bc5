"""What a step of a run costs, from short runs of it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from modern_llm.reporting.record import RunRecord

FIRST_STEPS = 2  # whose times tell of warming up
_STARTUP = 3.0  # seconds that a run takes before its folder is written


@dataclass(frozen=True)
class Rates:
    """What a step costs.

    Attributes:
        tokens, flops, seconds: of one step.
        around: seconds of a run around its steps: its start and its evaluation.
        parameters: of the model.
    """

    tokens: float
    flops: float
    seconds: float
    around: float
    parameters: float

    def run_seconds(self, steps: float) -> float:
        """Seconds that a run of so many steps takes."""
        return steps * self.seconds + self.around


def of_length(steps: int) -> list[str]:
    """Overrides that make a run so many steps long, and nothing else end it."""
    return ["trainer.max_tokens=null", "trainer.max_minutes=null", f"trainer.max_steps={steps}"]


def short_run(steps: int) -> list[str]:
    """Overrides that make a run one by which rates are measured."""
    return [*of_length(steps), f"trainer.eval_every={steps}", "trainer.log_every=1"]


def rates_of(probes: Sequence[RunRecord]) -> Rates:
    """From short runs, all of the same."""
    times = []
    for run in probes:
        seconds = [row["seconds"] for row in run.rows if "seconds" in row]
        times += [b - a for a, b in zip(seconds[FIRST_STEPS:], seconds[FIRST_STEPS + 1 :], strict=False)]
    last = probes[-1]
    whole = (last.folder / "result.json").stat().st_mtime - (last.folder / "config.yaml").stat().st_mtime
    return Rates(
        statistics.fmean(run.metrics["tokens"] / run.metrics["steps"] for run in probes),
        statistics.fmean(run.metrics.get("flops", 0.0) / run.metrics["steps"] for run in probes),
        statistics.median(times),
        max(whole - last.metrics["seconds"], 0.0) + _STARTUP,
        last.metrics["parameters"],
    )
