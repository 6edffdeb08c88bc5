"""Hydra's way in for the project's sweeps; what they do is in `modern_llm.runs`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from hydra._internal.core_plugins import file_config_source
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from modern_llm.config.choices import is_base
from modern_llm.config.instantiate import ConfigError
from modern_llm.processes import world
from modern_llm.reporting.record import is_complete
from modern_llm.runs.commands import run_in_process
from modern_llm.runs.devices import places, run_side_by_side, usable_cores, visible_gpus
from modern_llm.runs.folder import register_resolvers, require_name
from modern_llm.runs.launching import hand_over
from modern_llm.runs.search.settings import Search
from modern_llm.runs.search.space import Space
from modern_llm.runs.search.study import Study, objective_and_direction
from modern_llm.runs.sweep import JobFailedError, Sweep, objective_of, refuse_job, refused_jobs

# Tables whose keys are names of a person's own, which need no + in front.
_OPEN = {"arms", "sizes", "callbacks", "vars", "weights", "repeats"}


class FileConfigSource(file_config_source.FileConfigSource):
    """Configuration files as Hydra finds them, each parsed once while it does not change. Bases can be named, and are
    no choices in help, completion and messages; tables of names of one's own take new ones."""

    _parsed: ClassVar[dict[tuple[Any, ...], ConfigResult]] = {}

    def load_config(self, config_path: str) -> ConfigResult:
        try:
            facts = Path(self.path, self._normalize_file_name(config_path)).stat()
        except OSError:
            return super().load_config(config_path)  # which says what is wrong
        key = (self.provider, self.path, config_path, facts.st_ino, facts.st_mtime_ns, facts.st_size)
        if key not in self._parsed:
            result = super().load_config(config_path)
            _open_tables(result.config)
            self._parsed[key] = result
        return deepcopy(self._parsed[key])

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        folder = Path(self.path, config_path)
        return [name for name in super().list(config_path, results_filter) if not is_base(folder / f"{name}.yaml")]


def _open_tables(config: Container) -> None:
    for key in config if isinstance(config, DictConfig) and not config._is_none() else ():
        node = config._get_node(key)
        if isinstance(node, DictConfig):
            if key in _OPEN:
                OmegaConf.set_struct(node, False)
            _open_tables(node)


# Hydra keeps the first source that is registered for files, which is its own.
SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource
# Here, because the workers of Hydra's own launchers read this module and not launch.py.
register_resolvers()


class AblationSweeper(BasicSweeper):
    """Every combination of the swept values, as Hydra's basic sweeper; on top of it, a sweep can be taken up again
    (`resume=auto` or `resume=<folder>`), a failed job leaves the others alone, and a table and a picture come at the
    end.

    Args:
        max_batch_size: jobs handed at a time to a launcher that is not the project's own; None: all.
        params: swept values of an experiment file.
        unknown: what an experiment file sets besides, which is refused.

    Raises:
        ConfigError: there is such a key.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None, **unknown: Any) -> None:
        super().__init__(max_batch_size, params)
        for key, value in unknown.items():
            raise ConfigError(
                f"hydra.sweeper.{key}={value!r}: {type(self).__name__} has no such key. Leave it out; where a search "
                "is meant, add hydra/sweeper=optuna to the command."
            )

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> Any:
        own, resume = self._given(arguments)
        endless = next((override.input_line for override in own if override.is_interval_sweep()), None)
        if endless is not None:
            raise ConfigError(
                f"{endless}: is no list of values. Name them, as in key=1,2 or 'key=range(1,3)', or search in it: "
                "hydra/sweeper=optuna"
            )
        jobs = [job for batch in self.split_arguments(own, None) for job in batch]
        refused = refused_jobs(jobs, self._composed)
        sweep = self._open(jobs, resume)
        sweep.refuse(refused)
        return sweep.run(self._launch, refused)

    def _given(self, arguments: list[str]) -> tuple[list[Any], str | None]:
        """The overrides of a command, those of an experiment file first, and what it resumes."""
        assert self.config is not None
        assert self.hydra_context is not None
        if world().count > 1:
            raise ConfigError("--multirun: a sweep is a command of one process. Start it without torchrun.")
        given = {argument.split("=", 1)[0].lstrip("+~") for argument in arguments}
        recipe = [p for p in self._parse_config() if p.split("=", 1)[0] not in given]
        resume = [a.split("=", 1)[1] for a in arguments if a.startswith("resume=")]
        own = [a for a in arguments if not a.startswith("resume=")]
        # What a job is composed of asks Hydra; what is set there becomes read-only.
        HydraConfig.instance().set_config(deepcopy(self.config))
        require_name(self.config.name)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return parser.parse_overrides(recipe + own), resume[-1] if resume else None

    def _composed(self, job: Sequence[str]) -> DictConfig:
        assert self.hydra_context is not None
        return self.hydra_context.config_loader.load_sweep_config(self.config, list(job))

    def _open(self, jobs: list[list[str]], resume: str | None, search: dict[str, Any] | None = None) -> Sweep:
        """The sweep that is asked for, new or to be taken up; from here on it is where jobs are kept."""
        assert self.config is not None
        assert self.hydra_context is not None
        multirun = Path(str(self.config.paths.outputs)).expanduser() / "multirun"
        asked = Path(str(self.config.hydra.sweep.dir))
        sweep = Sweep.open(asked, multirun, jobs, resume, search)
        self.folder = sweep.folder
        if sweep.folder != asked:
            with open_dict(self.config):
                self.config.hydra.sweep.dir = str(sweep.folder)
            # Launchers look where their own files go when they are made.
            self.launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
            )
        return sweep

    def _launch(self, jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        assert self.launcher is not None
        if isinstance(self.launcher, ProcessLauncher):
            self.launcher.run(jobs, ended)
            return
        hand_over(self.launcher, self.folder, self.max_batch_size, jobs, ended)


class OptunaSweeper(AblationSweeper):
    """A search with Optuna over the swept values, each trial a job; the study is kept in the sweep's folder, and is
    taken up again as any sweep is.

    Args:
        max_batch_size: trials handed at a time to a launcher that is not the project's own.
        params: search space of an experiment file.
        search: of `modern_llm.runs.search.settings.Search`.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None, **search: Any) -> None:
        known = {field.name for field in fields(Search)}
        super().__init__(max_batch_size, params, **{key: search[key] for key in search if key not in known})
        self.search = search

    def sweep(self, arguments: list[str]) -> Any:
        search = Search(**self.search)
        own, resume = self._given(arguments)
        space = Space.of(own)
        metric, direction = objective_and_direction(space, search, self._composed)
        asked = {"space": space.told, "fixed": space.fixed, "metric": metric, "direction": direction}
        sweep = self._open([], resume, asked)
        return Study(sweep, space, search, self._composed).run(self._launch)


class ProcessLauncher(Launcher):
    """One job after the other, each in a process of its own: nothing leaks from job to job, and a crash ends one."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """As Hydra calls it."""
        self.config, self.context = config, hydra_context

    @property
    def sweep(self) -> Path:
        """Where the jobs' folders are."""
        return Path(str(self.config.hydra.sweep.dir))

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """As Hydra's own sweepers ask for it: jobs that nobody has checked."""
        HydraConfig.instance().set_config(deepcopy(self.config))
        refused = refused_jobs(job_overrides, self._composed)
        for place, why in refused.items():
            refuse_job(self.sweep / str(initial_job_idx + place), why)
        asked = [(initial_job_idx + place, list(job)) for place, job in enumerate(job_overrides)]
        self.run(iter([job for place, job in enumerate(asked) if place not in refused]), lambda number: None)
        return [self._returned(number, job) for number, job in asked]

    def run(self, jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        """Run jobs.

        Args:
            jobs: number and overrides of each; the next one is asked for when there is room for it.
            ended: told the number of each job that has ended, before the next one is asked for.
        """
        for number, job in jobs:
            run_in_process(job, self.sweep / str(number))
            ended(number)

    def _returned(self, number: int, overrides: list[str]) -> JobReturn:
        job, folder = JobReturn(), self.sweep / str(number)
        job.overrides = overrides
        finished = is_complete(folder)
        job.status = JobStatus.COMPLETED if finished else JobStatus.FAILED
        job.return_value = objective_of(folder) if finished else JobFailedError(number, folder)
        return job

    def _composed(self, job: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, list(job))


class DeviceLauncher(ProcessLauncher):
    """As many jobs at once as there are devices, each in a process of its own that sees its own device alone.

    Args:
        jobs: at once; None: one for each GPU that is visible, and one where there is none or `hardware.device` is cpu.
    """

    def __init__(self, jobs: int | None) -> None:
        self.jobs = jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        places(self.jobs, [], 1, {})  # what cannot be is told before a sweep begins

    def run(self, jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        on_cpu = OmegaConf.select(self.config, "hardware.device") == "cpu"
        gpus = [] if on_cpu else visible_gpus()
        run_side_by_side(jobs, places(self.jobs, gpus, usable_cores(), os.environ), self.sweep, ended)
