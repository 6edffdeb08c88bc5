"""How a command that is one run starts jobs of its own: by the launcher that it was given, as a sweep does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import open_dict, read_write

from modern_llm.config.messages import in_words
from modern_llm.config.overrides import quoted
from modern_llm.runs.devices import places, run_side_by_side, usable_cores, visible_gpus
from modern_llm.runs.sweep import Launch, note_failure

_OWN = "hydra_plugins.modern_llm_sweep."


def hand_over(
    launcher: Any,
    folder: Path,
    at_a_time: int | None,
    jobs: Iterator[tuple[int, list[str]]],
    ended: Callable[[int], None],
) -> None:
    """Give jobs to a launcher that is not the project's own.

    Args:
        launcher: as Hydra made it.
        folder: with a folder per job.
        at_a_time: jobs that it is given; None: all.
        jobs, ended: as a `Launch` takes them.
    """
    while batch := list(islice(jobs, at_a_time)):
        told = []
        for number, job in batch:
            # They compose each job anew, from its overrides and those of this command that are Hydra's own, whose mode
            # may be that of one run; and they count jobs by themselves.
            place = ["hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(folder))}", f"hydra.sweep.subdir='{number}'"]
            told.append([*job, f"resume={quoted(str(folder / str(number)))}", *place])
        try:
            returned = launcher.launch(told, initial_job_idx=batch[0][0])
        except Exception as cause:  # one worker that is killed may take the launcher's answer for all with it
            print(f"the launcher failed: {type(cause).__name__}: {in_words(cause)}", file=sys.stderr)
            returned = [JobReturn() for _ in batch]
        for (number, _), job in zip(batch, returned, strict=True):
            if job.status == JobStatus.FAILED:
                note_failure(folder / str(number), job._return_value)
            ended(number)


def launch_of_this_command(folder: Path, device: str) -> Launch:
    """What starts jobs in numbered folders: several at a time with `hydra/launcher=devices`, by another launcher of
    Hydra's where the command names it, else one after the other.

    Args:
        folder: that holds a folder per job.
        device: `hardware.device`.

    Raises:
        ValueError: `hydra.launcher.jobs` is below 1.
    """
    hydra = HydraConfig.get()
    if not str(hydra.launcher._target_).startswith(_OWN):
        return _of_hydra(folder)
    side_by_side = "jobs" in hydra.launcher
    gpus = visible_gpus() if side_by_side and device != "cpu" else []
    where = places(hydra.launcher.jobs if side_by_side else 1, gpus, usable_cores(), os.environ)

    def launch(jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        run_side_by_side(jobs, where, folder, ended, quiet=True)

    return launch


def _of_hydra(folder: Path) -> Launch:
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    from modern_llm.runs.run import execute

    config: Any = deepcopy(HydraConfig.instance().cfg)
    with read_write(config.hydra), open_dict(config):
        config.hydra.sweep.dir = str(folder)
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=execute, config=config)
    at_a_time = config.hydra.sweeper.get("max_batch_size")

    def launch(jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        hand_over(launcher, folder, at_a_time, jobs, ended)

    return launch
