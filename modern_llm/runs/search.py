"""A search with Optuna over the overrides of jobs: the study in a sweep's folder, and what its jobs ask of it."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from modern_llm.checks import require
from modern_llm.config.instantiate import ConfigError
from modern_llm.evaluation.metrics.registry import direction as way_of
from modern_llm.files import DamagedError, read_json, write_json
from modern_llm.reporting.record import STUDY, job_status
from modern_llm.runs.checked import checked, task_of
from modern_llm.runs.sweep import Launch, Sweep, objective_of, refuse_job, refused_jobs
from modern_llm.training.callbacks import Callback
from modern_llm.training.interruption import Pruned

if TYPE_CHECKING:
    import optuna

Direction = Literal["minimize", "maximize"]
_JOURNAL = "study.journal"
_DIRECTIONS: dict[str, Direction] = {"lower": "minimize", "higher": "maximize"}
_PROBES = 8  # random points of a space, of which one must make a job


@dataclass(frozen=True)
class Search:
    """How a study searches.

    Args:
        n_trials: in all.
        direction: of the objective; None: its metric knows.
        sampler: what draws the trials.
        startup_trials: drawn at random before the sampler learns from them.
        seed: of the sampler.
        pruner: what stops a trial during its training.
        pruner_startup_trials: that must be finished before `median` stops one.
        pruner_warmup: share of `trainer.max_steps` in which no trial is stopped.

    Raises:
        ValueError: an impossible value.
    """

    n_trials: int
    direction: Direction | None
    sampler: Literal["tpe", "random"]
    startup_trials: int
    seed: int
    pruner: Literal["median", "halving", "none"]
    pruner_startup_trials: int
    pruner_warmup: float

    def __post_init__(self) -> None:
        choices = {"direction": (None, "minimize", "maximize"), "sampler": ("tpe", "random"),
                   "pruner": ("median", "halving", "none")}  # fmt: skip
        for key, known in choices.items():
            named = ", ".join("null" if choice is None else choice for choice in known)
            require(getattr(self, key) in known, f"hydra.sweeper.{key}", getattr(self, key), "is not known",
                    f"Choose among {named}")  # fmt: skip
        least = {"n_trials": 1, "startup_trials": 0, "seed": 0, "pruner_startup_trials": 0}
        for key, low in least.items():
            value = getattr(self, key)
            require(isinstance(value, int) and value >= low, f"hydra.sweeper.{key}", value,
                    f"must be a whole number of at least {low}", "Change it")  # fmt: skip
        require(0 <= self.pruner_warmup < 1, "hydra.sweeper.pruner_warmup", self.pruner_warmup,
                "must be at least 0 and below 1", "Change it")  # fmt: skip

    def sampler_for(self, number: int) -> optuna.samplers.BaseSampler:
        """What draws a trial. Each is drawn with a seed of its own, so that a study that is taken up again draws what
        it would have drawn."""
        import numpy as np
        import optuna

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # Trials that are still running count as bad ones, so that trials side by side are not all the same.
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials, constant_liar=True)

    def make_pruner(self) -> optuna.pruners.BasePruner:
        """What decides during training whether a trial is stopped."""
        import optuna

        if self.pruner == "median":
            return optuna.pruners.MedianPruner(self.pruner_startup_trials)
        return optuna.pruners.SuccessiveHalvingPruner() if self.pruner == "halving" else optuna.pruners.NopPruner()


@dataclass(frozen=True)
class Space:
    """The overrides of a search: those that every job has, and what is searched over.

    Attributes:
        fixed: overrides as a job is given them.
        axes: key -> what is searched over.
    """

    fixed: list[str]
    axes: dict[str, Override]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """From a command.

        Raises:
            ConfigError: nothing is searched over, or an axis that makes no sense.
        """
        given = {override.get_key_element(): override for override in overrides}
        axes = {key: override for key, override in given.items() if override.is_sweep_override()}
        if not axes:
            raise ConfigError(
                "hydra/sweeper=optuna: no override is a search space. Write one as "
                "'trainer.optimizer.lr=tag(log,interval(1e-4,1e-1))', key=choice(a,b) or 'key=range(1,9)'."
            )
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in given.items() if key not in axes]
        space = cls(fixed, axes)
        for key, axis in axes.items():
            _require_sense(key, axis)
        return space

    @property
    def told(self) -> dict[str, str]:
        """The axes as they were typed."""
        return {key: str(axis.input_line).split("=", 1)[1] for key, axis in self.axes.items()}

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The axes as Optuna has them."""
        return {key: _distribution(axis) for key, axis in self.axes.items()}

    def job(self, values: Mapping[str, Any]) -> list[str]:
        """Overrides of the job with these values."""
        return [*self.fixed, *(f"{key}={_text(values[key])}" for key in self.axes)]


def _require_sense(key: str, axis: Override) -> None:
    sweep, told = axis.value(), str(axis.input_line).split("=", 1)[1]
    tags: set[str] = getattr(sweep, "tags", set())
    require(tags <= {"log"}, key, told, f"has the tag {', '.join(sorted(tags - {'log'}))}, and log alone is known",
            "Leave it out")  # fmt: skip
    is_log = "log" in tags
    if isinstance(sweep, IntervalSweep):
        start, end = sweep.start, sweep.end
        require(start is not None and end is not None and start < end, key, told, "has no inside",
                "Write the smaller bound first")  # fmt: skip
        require(not is_log or (start or 0) > 0, key, told, "is logarithmic and begins at 0 or below",
                "Begin above 0, or leave the tag out")  # fmt: skip
    elif isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        require(len(values) > 0, key, told, "holds no value", "The end is not part of a range; raise it")
        steps = isinstance(sweep.step, int) and abs(sweep.step) == 1
        require(not is_log or (steps and min(values) > 0), key, told, "is logarithmic, so it needs step 1 and must "
                "begin above 0", "Change it, or leave the tag out")  # fmt: skip
    else:
        require(not is_log, key, told, "is a choice, which has no scale", "Leave the tag out")


def _distribution(axis: Override) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = axis.value()
    is_log = "log" in getattr(sweep, "tags", set())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):  # int(interval(…))
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(float(low), float(high), log=is_log)
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        step = abs(sweep.step)
        if all(isinstance(value, int) for value in values):
            return IntDistribution(int(min(values)), int(max(values)), step=int(step), log=is_log)
        return FloatDistribution(min(values), max(values), step=step)
    assert isinstance(sweep, ChoiceSweep) or axis.is_discrete_sweep()
    # The texts as Hydra writes them, so that lists, quotes and names of groups reach a job as they were typed.
    return CategoricalDistribution(list(dict.fromkeys(axis.sweep_string_iterator())))


def _text(value: Any) -> str:
    """A value in an override; of a float, as many digits as a person may want to read."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna without its log of every trial, and without notes on what it calls experimental."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def _opened(folder: Path, direction: Direction, pruner: optuna.pruners.BasePruner) -> optuna.Study:
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
        with _quiet():
            self.study = _opened(self.sweep.folder, self.direction, self.search.make_pruner())
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
        with _quiet():
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

        with _quiet():
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
        with _quiet():
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
    with _quiet():
        drawing = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(_PROBES):
            job = space.job(drawing.ask(space.distributions()).params)
            if why := refused_jobs([job], compose).get(0):
                refused = refused or why
                continue
            metric = task_of(checked(compose(job), job)).objective_metric
            way = search.direction or _DIRECTIONS.get(str(way_of(metric)))
            if way is None:
                raise ConfigError(
                    f"task.objective_metric={metric!r}: which way it is better is not known. Set "
                    "hydra.sweeper.direction=minimize or maximize, or choose another metric."
                )
            return metric, way
    raise ConfigError(f"none of {_PROBES} jobs of this search can run: {refused}")


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

    with _quiet():
        study = _opened(folder.parent, direction, search.make_pruner())
        trial = next((t for t in study.get_trials(deepcopy=False) if str(t.number) == folder.name), None)
        if trial is None or trial.state.is_finished():  # a person goes on with a job by itself
            return []
        monitor = str(trainer["monitor"])
        sign = 1.0 if _DIRECTIONS.get(str(way_of(monitor))) == direction else -1.0
        going = optuna.trial.Trial(study, trial._trial_id)
        return [_Pruning(going, {*trial.intermediate_values}, monitor, sign, search)]
