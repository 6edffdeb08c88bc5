"""The study in a sweep's folder: draws jobs, and learns from how they end."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from modern_llm.config.instantiate import ConfigError
from modern_llm.evaluation.metrics.registry import direction as way_of
from modern_llm.files import write_json
from modern_llm.reporting.record import STUDY, job_status
from modern_llm.runs.checked import checked, task_of
from modern_llm.runs.search.settings import DIRECTIONS, Direction, Search
from modern_llm.runs.search.space import Space
from modern_llm.runs.sweep import Launch, Sweep, objective_of, refuse_job, refused_jobs

if TYPE_CHECKING:
    import optuna

_JOURNAL = "study.journal"
_PROBES = 8  # random points of a space, of which one must make a job


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna without its log of every trial, and without notes on what it calls experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def opened(folder: Path, direction: Direction, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """The study that is kept in a folder.

    Raises:
        ConfigError: it is damaged.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    try:
        # Unlike a database, a journal may lie on a file system that several machines share.
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / _JOURNAL)))
        return optuna.create_study(
            storage=storage, study_name="study", direction=direction, pruner=pruner, load_if_exists=True
        )
    except (ValueError, KeyError) as cause:
        raise ConfigError(f"{folder / _JOURNAL}: is damaged ({cause}). Start a new search.") from cause


@dataclass
class Study:
    """A study in a sweep's folder: job n is trial n.

    Args:
        sweep: whose jobs are the trials.
        space: what is searched over.
        search: how.
        compose: makes the configuration of a job.

    Raises:
        ConfigError: no job can be made of the space; the metric has no direction; the study is damaged.
    """

    sweep: Sweep
    space: Space
    search: Search
    compose: Callable[[Sequence[str]], DictConfig]

    def __post_init__(self) -> None:
        assert self.sweep.search is not None
        self.metric, self.direction = self.sweep.search["metric"], self.sweep.search["direction"]
        with quiet():
            self.study = opened(self.sweep.folder, self.direction, self.search.make_pruner())
            self.distributions = self.space.distributions()
        del self.sweep.jobs[:]
        for trial in self._trials():
            whole = {*trial.params} == {*self.space.axes}
            self.sweep.jobs.append(self.space.job(trial.params) if whole else self.space.fixed)
        self.write()

    def run(self, launch: Launch) -> list[str]:
        """Run what the search asks for, and write table, pictures and page.

        Args:
            launch: runs jobs.

        Returns:
            The status of every job.

        Raises:
            SweepInterrupted: a signal came; the table tells how far the search is.
            SystemExit: status 1, at the end, when no trial is finished.
        """
        before = len(self.sweep.jobs)
        known = f", {before} of them drawn before" if before else ""
        print(f"search: {self.search.n_trials} trials in {self.sweep.folder}{known}", file=sys.stderr)
        with self.sweep.reported():
            try:
                launch(self.jobs(), self.ended)
            finally:
                self.write()
        best = self.best()
        if best is None:
            print("no trial is finished; the table says why.", file=sys.stderr)
            raise SystemExit(1)
        own = " ".join(self.sweep.jobs[best[0]][len(self.space.fixed) :])
        print(f"{'best:':<13}job {best[0]}, {self.metric} {best[1]:.6g}: {own}")
        return self.sweep.statuses()

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def jobs(self) -> Iterator[tuple[int, list[str]]]:
        """Number and overrides of the jobs that are to be run: those that were left half-done, then new ones. A new
        one is drawn when it is asked for, from what is known by then."""
        for trial in self._trials():
            if trial.state.is_finished():
                continue
            if {*trial.params} != {*self.space.axes}:  # killed while it was drawn
                self._tell(trial.number, "fail")
            elif job_status(self.sweep.folder / str(trial.number)).startswith(("finished", "failed", "pruned")):
                self.ended(trial.number)
            else:
                yield trial.number, self.sweep.jobs[trial.number]
        while len(self._trials()) < self.search.n_trials:
            number = self._draw()
            if why := refused_jobs([self.sweep.jobs[number]], self.compose).get(0):
                print(f"job {number} is refused: {why}", file=sys.stderr)
                refuse_job(self.sweep.folder / str(number), why)
                self._tell(number, "fail")
            else:
                yield number, self.sweep.jobs[number]

    def _draw(self) -> int:
        with quiet():
            self.study.sampler = self.search.sampler_for(len(self._trials()))
            trial = self.study.ask(self.distributions)
        self.sweep.jobs.append(self.space.job(trial.params))
        self.sweep.write()
        return trial.number

    def ended(self, number: int) -> None:
        """Learn from how a job ended. One that was interrupted is left to be taken up again."""
        folder = self.sweep.folder / str(number)
        status = job_status(folder)
        value = objective_of(folder) if status == "finished" else None
        if status == "finished" and value is not None and math.isfinite(value):
            self._tell(number, "complete", value)
        elif status.startswith("pruned"):
            self._tell(number, "pruned")
        elif status.startswith(("finished", "failed")):
            self._tell(number, "fail")

    def _tell(self, number: int, state: str, value: float | None = None) -> None:
        from optuna.trial import TrialState

        with quiet():
            self.study.tell(number, value, state=TrialState[state.upper()], skip_if_finished=True)

    def write(self) -> None:
        """Note the jobs, how the search is made, which its jobs read, and what it found, which reports read."""
        trials = [
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "values": dict(trial.params),
                "on_its_way": {str(step): value for step, value in trial.intermediate_values.items()},
            }
            for trial in self._trials()
        ]
        axes: dict[str, Any] = dict(self.distributions)
        scales = {
            key: {"low": axis.low, "high": axis.high, "log": axis.log}
            for key, axis in axes.items()
            if hasattr(axis, "low")
        }
        known = {"metric": self.metric, "direction": self.direction, "search": asdict(self.search), "scales": scales}
        self.sweep.write()
        write_json(self.sweep.folder / STUDY, known | {"trials": trials, "importances": self._importances()})

    def _importances(self) -> dict[str, float]:
        """Share of each axis in how good a trial is (PED-ANOVA, Watanabe et al. 2023, arXiv 2304.10255); empty where
        too few trials are finished."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        values = [trial.value for trial in self._trials() if trial.state.name == "COMPLETE"]
        if len(values) < 2 or len({*values}) < 2:
            return {}
        with quiet():
            return dict(get_param_importances(self.study, evaluator=PedAnovaImportanceEvaluator()))

    def best(self) -> tuple[int, float] | None:
        """Number and objective of the best trial; None: none is finished."""
        values = {trial.number: trial.value for trial in self._trials() if trial.state.name == "COMPLETE"}
        if not values:
            return None
        number = (min if self.direction == "minimize" else max)(values, key=lambda n: values[n] or 0.0)
        return number, float(values[number] or 0.0)


def objective_and_direction(
    space: Space, search: Search, compose: Callable[[Sequence[str]], DictConfig]
) -> tuple[str, Direction]:
    """What a search optimises, which way; a few jobs of the space are made before the first one runs.

    Raises:
        ConfigError: none of them can run; or the metric has no direction.
    """
    import optuna

    refused = ""
    with quiet():
        drawing = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(_PROBES):
            job = space.job(drawing.ask(space.distributions()).params)
            if why := refused_jobs([job], compose).get(0):
                refused = refused or why
                continue
            metric = task_of(checked(compose(job), job)).objective_metric
            way = search.direction or DIRECTIONS.get(str(way_of(metric)))
            if way is None:
                raise ConfigError(
                    f"task.objective_metric={metric!r}: which way it is better is not known. Set "
                    "hydra.sweeper.direction=minimize or maximize, or choose another metric."
                )
            return metric, way
    raise ConfigError(f"none of {_PROBES} jobs of this search can run: {refused}")
