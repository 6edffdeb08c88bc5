"""Every arm's own rate: as many trials for each, drawn alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.runs.ablation.settings import Tuning
from modern_llm.runs.search.settings import DIRECTIONS, Search
from modern_llm.runs.search.study import opened, quiet

if TYPE_CHECKING:
    import optuna

Factors = dict[str, float]
# Runs trials of arms, and gives the mean of each one's metric; None for one that has none.
RunTrials = Callable[[Sequence[tuple[str, Factors]]], list[float | None]]


@dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
        arm: whose.
        factors: key -> factor on what the arm is configured with.
        value: mean of the metric over the tuning seeds; None: a run had none.
    """

    arm: str
    factors: Factors
    value: float | None


@dataclass(frozen=True)
class Tuned:
    """What the tuning of an arm found.

    Attributes:
        factors: the best.
        at_edge: keys whose best factor is the smallest or the largest that was tried, so that a better one may lie
            outside.
    """

    factors: Factors
    at_edge: tuple[str, ...]


def tune(
    tuning: Tuning, arms: Sequence[str], lower_is_better: bool, seed: int, folder: Path, run: RunTrials
) -> tuple[dict[str, Tuned], list[Trial]]:
    """Tune all arms side by side.

    Args:
        tuning: how.
        arms: their names.
        lower_is_better: of the metric.
        seed: of what is drawn.
        folder: keeps Optuna's studies, a folder an arm.
        run: runs trials.

    Returns:
        Arm -> what was found, and all trials.

    Raises:
        ConfigError: a study is damaged.
    """
    trials = _of_grid(tuning, arms, run) if tuning.trials is None else _drawn(
        tuning, arms, lower_is_better, seed, folder, run)  # fmt: skip
    found = {}
    for arm in arms:
        own = [trial for trial in trials if trial.arm == arm and trial.value is not None]
        best = min(own, key=lambda t: (t.value or 0.0) * (1 if lower_is_better else -1), default=None)
        factors = dict.fromkeys(tuning.keys, 1.0) if best is None else best.factors
        low, high = min(tuning.factors), max(tuning.factors)
        edge = tuple(key for key, factor in factors.items() if not 1.05 * low < factor < high / 1.05)
        found[arm] = Tuned(factors, edge)
    return found, trials


def _of_grid(tuning: Tuning, arms: Sequence[str], run: RunTrials) -> list[Trial]:
    asked = [(arm, factors) for factors in tuning.grid for arm in arms]
    return [Trial(arm, factors, value) for (arm, factors), value in zip(asked, run(asked), strict=True)]


def _drawn(
    tuning: Tuning, arms: Sequence[str], lower_is_better: bool, seed: int, folder: Path, run: RunTrials
) -> list[Trial]:
    """Trials of Optuna: one of each arm at a time; the first is what the arm is configured with. Each study lies in its
    folder, and a trial that was drawn before an interruption is not drawn again."""
    from optuna.distributions import FloatDistribution
    from optuna.pruners import NopPruner
    from optuna.trial import TrialState

    assert tuning.trials is not None
    space: dict[str, Any] = {
        key: FloatDistribution(min(tuning.factors), max(tuning.factors), log=True) for key in tuning.keys
    }
    search = Search(tuning.trials, None, "tpe", min(3, tuning.trials), seed, "none", 0, 0.0)
    studies: dict[str, optuna.Study] = {}
    with quiet():
        for arm in arms:
            (folder / arm).mkdir(parents=True, exist_ok=True)
            way = DIRECTIONS["lower" if lower_is_better else "higher"]
            studies[arm] = opened(folder / arm, way, NopPruner())
            if not studies[arm].trials and min(tuning.factors) <= 1 <= max(tuning.factors):
                studies[arm].enqueue_trial(dict.fromkeys(tuning.keys, 1.0))
        for number in range(tuning.trials):
            asked: list[tuple[str, Factors]] = []
            for arm, study in studies.items():
                drawn = [trial for trial in study.trials if trial.state != TrialState.WAITING]
                if number < len(drawn):
                    asked.append((arm, dict(drawn[number].params)))
                else:
                    study.sampler = search.sampler_for(number)
                    asked.append((arm, dict(study.ask(space).params)))
            for (arm, _), value in zip(asked, run(asked), strict=True):
                state = TrialState.FAIL if value is None else TrialState.COMPLETE
                studies[arm].tell(number, value, state=state, skip_if_finished=True)
        return [
            Trial(arm, dict(trial.params), trial.value)
            for number in range(tuning.trials)
            for arm, study in studies.items()
            for trial in [study.trials[number]]
        ]
