"""What the jobs of a study ask of it during their training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.config.instantiate import ConfigError
from modern_llm.evaluation.metrics.registry import direction as way_of
from modern_llm.files import DamagedError, read_json
from modern_llm.reporting.record import STUDY
from modern_llm.runs.search.settings import DIRECTIONS, Search
from modern_llm.runs.search.study import opened, quiet
from modern_llm.training.callbacks import Callback
from modern_llm.training.interruption import Pruned

if TYPE_CHECKING:
    import optuna


class _Pruning(Callback):
    """Tells the study what is measured during training, and ends a run that the study gives up.

    Args:
        trial: of the run.
        known: steps that were told before the run was interrupted.
        monitor: the metric that is told.
        sign: -1 where it is better the other way than the objective.
        search: of the study.
    """

    def __init__(self, trial: optuna.Trial, known: set[int], monitor: str, sign: float, search: Search) -> None:
        self.trial, self.known = trial, known
        self.monitor, self.sign, self.search = monitor, sign, search

    def on_start(self, step: int, max_steps: int | None) -> None:
        self.max_steps = max_steps

    def on_metrics(self, row: dict[str, Any]) -> None:
        value = row.get(self.monitor)
        if value is None:
            return
        step = int(row["step"])
        if step not in self.known:
            self.trial.report(self.sign * value, step)
        # A run that has done all its steps is measured: that is cheap, and tells more.
        is_early = step < self.search.pruner_warmup * (self.max_steps or 0)
        if not is_early and step != self.max_steps and self.trial.should_prune():
            told = f"{self.monitor} {value:.4g} at step {step}"
            raise Pruned(f"{told} was behind the other trials ({self.search.pruner})")


def pruning(folder: Path, record: Mapping[str, Any]) -> list[Callback]:
    """Who stops a run that is a trial of a study, where the study stops any; empty for all other runs.

    Args:
        folder: of the run.
        record: its configuration.
    """
    trainer = record.get("trainer")
    if not (folder.parent / STUDY).is_file() or not isinstance(trainer, dict):
        return []
    try:
        known = read_json(folder.parent / STUDY)
        search, direction = Search(**known["search"]), known["direction"]
    except (DamagedError, KeyError, TypeError) as cause:
        raise ConfigError(f"{folder.parent / STUDY}: is damaged ({cause}). Start a new search.") from cause
    if search.pruner == "none":
        return []
    import optuna

    with quiet():
        study = opened(folder.parent, direction, search.make_pruner())
        trial = next((t for t in study.get_trials(deepcopy=False) if str(t.number) == folder.name), None)
        if trial is None or trial.state.is_finished():  # a person goes on with a job by itself
            return []
        monitor = str(trainer["monitor"])
        sign = 1.0 if DIRECTIONS.get(str(way_of(monitor))) == direction else -1.0
        going = optuna.trial.Trial(study, trial._trial_id)
        return [_Pruning(going, {*trial.intermediate_values}, monitor, sign, search)]
