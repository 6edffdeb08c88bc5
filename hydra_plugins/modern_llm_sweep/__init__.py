"""Hydra's way in for the project's sweeps; what they do is in `modern_llm.runs.sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins import file_config_source
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from modern_llm.config.choices import is_base
from modern_llm.config.overrides import quoted
from modern_llm.runs.folder import require_name
from modern_llm.runs.sweep import (
    JobFailedError,
    Sweep,
    objective_of,
    refuse_job,
    refused_jobs,
    run_in_process,
    same_precision,
)


class FileConfigSource(file_config_source.FileConfigSource):
    """Configuration files as Hydra finds them. Bases can be named, and are no choices in help, completion and
    messages."""

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        folder = Path(self.path, config_path)
        return [name for name in super().list(config_path, results_filter) if not is_base(folder / f"{name}.yaml")]


# Hydra keeps the first source that is registered for files, which is its own.
SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


class AblationSweeper(BasicSweeper):
    """Every combination of the swept values, as Hydra's basic sweeper; on top of it, a sweep can be taken up again
    (`resume=auto` or `resume=<folder>`), a failed job leaves the others alone, and a table and a picture come at the
    end.

    Args:
        max_batch_size: jobs handed to the launcher at a time; None: all.
        params: swept values of an experiment file.
    """

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        super().__init__(max_batch_size, params)

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        given = {argument.split("=", 1)[0].lstrip("+~") for argument in arguments}
        recipe = [p for p in self._parse_config() if p.split("=", 1)[0] not in given]
        resume = [a.split("=", 1)[1] for a in arguments if a.startswith("resume=")]
        own = [a for a in arguments if not a.startswith("resume=")]
        jobs = [job for batch in self.split_arguments(parser.parse_overrides(recipe + own), None) for job in batch]
        outputs = Path(str(self.config.paths.outputs)).expanduser()
        # What a job is composed of asks Hydra; what is set there becomes read-only.
        HydraConfig.instance().set_config(deepcopy(self.config))
        refused = refused_jobs(jobs, lambda job: loader.load_sweep_config(self.config, list(job)))
        require_name(self.config.name)
        new = Path(str(self.config.hydra.sweep.dir))
        sweep = Sweep.open(new, outputs / "multirun", jobs, resume[-1] if resume else None)
        self.folder = sweep.folder
        with open_dict(self.config):
            self.config.hydra.sweep.dir = str(sweep.folder)
        sweep.refuse(refused)
        return sweep.run(self._launch, self.max_batch_size, refused)

    def _launch(self, jobs: Sequence[Sequence[str]], first: int) -> None:
        assert self.launcher is not None
        if isinstance(self.launcher, ProcessLauncher):
            self.launcher.are_checked = True
            self.launcher.launch(jobs, initial_job_idx=first)
            return
        # Other launchers compose each job anew, from its overrides alone.
        place = f"hydra.sweep.dir={quoted(str(self.folder))}"
        told = []
        for number, job in enumerate(jobs, first):
            folder = self.folder / str(number)
            resume = [f"resume={quoted(str(folder))}"] if (folder / "config.yaml").is_file() else []
            told.append([*job, *resume, place])
        self.launcher.launch(told, initial_job_idx=first)


class ProcessLauncher(Launcher):
    """One job after the other, each in a process of its own: nothing leaks from job to job, and a crash ends one."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.context = config, hydra_context
        self.jobs: dict[int, list[str]] = {}
        self.are_checked = False

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        returns, sweep = [], Path(str(self.config.hydra.sweep.dir))
        HydraConfig.instance().set_config(deepcopy(self.config))
        refused = {} if self.are_checked else refused_jobs(job_overrides, self._composed)
        for number, overrides in enumerate(job_overrides, initial_job_idx):
            folder, why = sweep / str(number), refused.get(number - initial_job_idx)
            if why is None:
                status = run_in_process([*overrides, *same_precision(overrides, sweep, self.jobs)], folder)
                self.jobs[number] = list(overrides)
            else:
                status = refuse_job(folder, why)
            job = JobReturn()
            job.overrides = list(overrides)
            job.status = JobStatus.COMPLETED if status == 0 else JobStatus.FAILED
            job.return_value = objective_of(folder) if status == 0 else JobFailedError(number, folder)
            returns.append(job)
        return returns

    def _composed(self, job: Sequence[str]) -> DictConfig:
        return self.context.config_loader.load_sweep_config(self.config, list(job))
