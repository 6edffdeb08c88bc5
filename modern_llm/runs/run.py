"""One run: its folder, its record, its end."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from modern_llm import locks
from modern_llm.checks import require
from modern_llm.config.composing import is_single_run
from modern_llm.config.instantiate import ConfigError, build
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.experiment.contract import RunFolder, Task, say
from modern_llm.files import json_text, write_text
from modern_llm.processes import FailedElsewhereError, agreed, is_lost, require_same, world
from modern_llm.reporting.record import PAGE_FAILURE, PRUNED, RunRecord, is_complete, is_number
from modern_llm.runs.checked import check_overrides, check_root, checked, task_of
from modern_llm.runs.folder import hold_given
from modern_llm.runs.resume import resumed_config
from modern_llm.runs.search.pruning import pruning
from modern_llm.runs.sweep import SWEEP, measured_once
from modern_llm.training.interruption import Pruned

_PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "tokenizers", "safetensors", "transformers", "datasets")

_BASIC_SWEEP = "multirun.yaml"  # what Hydra's basic sweeper leaves in a sweep's folder


class RunFolderGoneError(RuntimeError):
    """The folder of a run was taken away while the run was going on."""


def execute(config: DictConfig) -> float | None:
    """Run the composed configuration: check, resume or start, record, run the task.

    Returns:
        The task's `objective_metric`, for a sweeper that optimises; None where its search stopped the run.

    Raises:
        ConfigError: anything wrong with the configuration, before torch is imported.
        RunFolderGoneError: the folder was taken away.
    """
    hydra = HydraConfig.get()
    path, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    sitting = _sitting(overrides)
    require_same(
        "the command or the code", [overrides, sitting["packages"], sitting["code"]], "Start all of them alike."
    )
    try:
        record = agreed(lambda: _started(config, path, overrides, sitting))
        return _run(record, path)
    finally:
        if not is_single_run():
            locks.release(path)  # the process of a launcher's worker goes on with other jobs


def _run(record: dict[str, Any], path: Path) -> float | None:
    """The run in a folder that this process holds, or the first one of those that train together."""
    task = task_of(record)
    say(f"run folder: {path}")
    before = _written(path / "result.json")
    try:
        metrics = task.run(RunFolder(path, record, pruning(path, record)))
    except Pruned as pruned:
        write_text(path / PRUNED, f"{pruned}\n")
        locks.end(path)
        print(f"pruned: {pruned}", file=sys.stderr)
        return None
    except Exception as failure:
        if not path.is_dir():
            raise RunFolderGoneError(
                f"{path}: was taken away while the run was going on, so nothing can be kept. Start it again."
            ) from failure
        if _written(path / "result.json") == before:
            if not isinstance(failure, FailedElsewhereError) and not is_lost(failure):
                _note_failure(path / "failure.txt", failure)
            raise
        _note_failure(path / PAGE_FAILURE, failure)
        print(f"The figures are kept in {path / 'result.json'}. What comes behind them failed: {in_words(failure)}\n"
              f"When the cause is mended, resume={path} makes what is missing", file=sys.stderr)  # fmt: skip
        metrics = RunRecord.read(path).metrics
    if world().is_first:
        locks.end(path)
    return metrics.get(task.objective_metric)


def _started(config: DictConfig, path: Path, overrides: list[str], sitting: dict[str, Any]) -> dict[str, Any]:
    """The record of the run, checked and written down in its folder, which this process holds.

    Raises:
        ConfigError: as in `execute`.
    """
    hold_given(path)
    resuming = (path / "config.yaml").is_file()
    if resuming:
        if config.resume is None:
            raise ConfigError(
                f"{path} holds a run already. Continue it with resume={path}, or choose another hydra.run.dir."
            )
        check_root(config)
        check_overrides(config, overrides)
        record = resumed_config(path, config, overrides)
        if is_complete(path) and not locks.found_open(path):
            _require_further_work(task_of(record), path, record)
    else:
        record = checked(config, overrides)
        if config.resume == "auto":
            print("resume=auto: no unfinished run like this one; starting a new one", file=sys.stderr)
    task = task_of(record)
    plan_only = getattr(getattr(task, "hardware", None), "plan_only", False)
    require(not plan_only or hasattr(task, "rehearsal"), "hardware.plan_only", plan_only,
            "is for one task that trains", "Leave it out, or give it to a step by itself")  # fmt: skip
    if getattr(task, "measures_precision", True):
        _settle_precision(record, path)
    _begin(path, record, sitting | {"resumed": resuming})
    return record


def _settle_precision(record: dict[str, Any], path: Path) -> None:
    """Measure once what `hardware.precision=auto` comes to: the record says it, so that the run goes on with it
    wherever it is resumed, and the jobs of a sweep compute alike.

    Raises:
        ValueError: the machine has not what `hardware` asks for.
    """
    hardware = record.get("hardware")
    if isinstance(hardware, dict) and hardware.get("precision") == "auto":

        def measure() -> str:
            from modern_llm.training.runtime import Runtime

            return Runtime(build(hardware, "hardware")).precision

        in_a_sweep = any((path.parent / name).is_file() for name in (SWEEP, _BASIC_SWEEP))
        hardware["precision"] = measured_once(path.parent, hardware, measure) if in_a_sweep else measure()


def _written(path: Path) -> int | None:
    """When a file was written; None: it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _note_failure(path: Path, failure: Exception) -> None:
    """Write down why, the reason in the first line. On a full disk the failure itself is what is told."""
    reason = in_words(failure) if is_mistake(failure) else "".join(traceback.format_exception_only(failure))
    with suppress(OSError):
        write_text(path, reason.strip() + "\n\n" + "".join(traceback.format_exception(failure)))


def _require_further_work(task: Task, path: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with a finished run that has nothing left to do.

    Raises:
        ConfigError: with what would give it more.
    """
    further_work = getattr(task, "further_work", None)
    if further_work is not None:
        if not further_work(path):
            raise ConfigError(f"resume={path}: this is finished. Ask for {task.more}.")  # type: ignore[attr-defined]
        return
    length = (record.get("trainer") or {}).get("max_steps")
    if not is_number(length):
        raise ConfigError(f"resume={path}: this run is finished. Leave resume out to start a new one.")
    done = RunRecord.read(path).metrics.get("steps", 0)
    assert length is not None
    if length <= done:
        raise ConfigError(
            f"resume={path}: this run is finished. Lengthen it with trainer.max_steps=<more than {done:.0f}>."
        )


def _sitting(overrides: list[str]) -> dict[str, Any]:
    """What this command is, and what it runs with."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "overrides": overrides,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "code": _code_version(),
        "processes": world().count,
    }


def _begin(path: Path, record: dict[str, Any], sitting: dict[str, Any]) -> None:
    """Write down what runs. What an earlier sitting left half-written or failed at is no longer true.

    Raises:
        OSError: nothing can be written there.
    """
    locks.begin(path)
    for left in (*path.glob("*.part"), path / "failure.txt", path / PAGE_FAILURE, path / PRUNED):
        with suppress(OSError):
            left.unlink()
    write_text(path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(record)))
    with (path / "sittings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json_text(sitting) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _code_version() -> str | None:
    """The commit of the code, with `-dirty` for uncommitted changes; None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
