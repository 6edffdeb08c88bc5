"""One run: its folder, its record, its end."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
import time
import traceback
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from modern_llm.config.instantiate import LINKS, ConfigError, build, nearest
from modern_llm.config.overrides import group_of
from modern_llm.experiment.contract import RunFolder, Task
from modern_llm.runs.pipeline import Pipeline
from modern_llm.runs.resume import newest_unfinished, resumed_config, settled

_ROOT_KEYS = ("name", "seed", "resume", "model", "task", "trainer", "hardware", "logger", "paths")
_PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "tokenizers", "safetensors", "transformers", "datasets")


def run_folder(resume: str | None, outputs: str, name: str, _root_: DictConfig) -> str:
    """What `hydra.run.dir` is: the folder of the run to resume, or a new one.

    Raises:
        ConfigError: `resume` names no run.
    """
    if resume not in (None, "auto"):
        folder = Path(str(resume)).expanduser()
        if not (folder / "config.yaml").is_file():
            raise ConfigError(
                f"resume={resume}: is not the folder of a run (no config.yaml in it). "
                "Give a folder below outputs/, or resume=auto for the newest unfinished run like this one."
            )
        return str(folder)
    if resume == "auto":
        found = newest_unfinished(Path(outputs).expanduser(), settled(_root_))
        if found is not None:
            return str(found)
    base = Path(outputs).expanduser() / time.strftime("%Y-%m-%d") / f"{time.strftime('%H-%M-%S')}_{name}"
    folder, number = base, 1
    while folder.exists():
        folder, number = base.with_name(f"{base.name}_{number}"), number + 1
    return str(folder)


def run_name(task: str, model: str, _root_: DictConfig) -> str:
    """The names of the task and of the model, where the task has one."""
    return f"{task}_{model}" if "model" in _root_.task else task


def register_resolvers() -> None:
    """Make `${run_folder:…}` and `${run_name:…}` known. One folder per process: Hydra asks twice, and time goes on."""
    answers: dict[tuple[str | None, str, str], str] = {}

    def once(resume: str | None, outputs: str, name: str, _root_: DictConfig) -> str:
        key = (resume, outputs, name)
        if key not in answers:
            answers[key] = run_folder(resume, outputs, name, _root_)
        return answers[key]

    OmegaConf.register_new_resolver("run_folder", once, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def check_root(config: DictConfig) -> None:
    """Refuse keys at the top that nothing reads.

    Raises:
        ConfigError: with the nearest real key.
    """
    for key in map(str, config):
        if key not in _ROOT_KEYS:
            raise ConfigError(f"{key}={config[key]!r}: there is no such key. {nearest(key, list(_ROOT_KEYS))}")


def check_overrides(config: DictConfig, overrides: list[str]) -> None:
    """Refuse overrides of a group that the task does not read.

    Raises:
        ConfigError: with the groups that it reads.
    """
    read = [link for link in LINKS if link in config.task]
    for override in overrides:
        group = group_of(override)
        # Every run has a folder, which `paths` places.
        if group in LINKS and group not in (*read, "paths"):
            raise ConfigError(f"{override}: this task does not read {group}. It reads {', '.join(read) or 'none'}.")


def execute(config: DictConfig) -> float | None:
    """Run the composed configuration: check, resume or start, record, run the task.

    Returns:
        The task's `objective_metric`, for a sweeper that optimises.

    Raises:
        ConfigError: anything wrong with the configuration, before torch is imported.
    """
    check_root(config)
    hydra = HydraConfig.get()
    path, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    check_overrides(config, overrides)
    resuming = (path / "config.yaml").is_file()
    if resuming:
        if config.resume is None:
            raise ConfigError(
                f"{path} holds a run already. Continue it with resume={path}, or choose another hydra.run.dir."
            )
        record = resumed_config(path, config, overrides)
    else:
        record = settled(config)
        if config.resume == "auto":
            print("resume=auto: no unfinished run like this one; starting a new one", file=sys.stderr)
    task: Task = build(OmegaConf.create(record).task)
    if resuming and (path / "result.json").exists():
        _require_further_work(task, path, record)
    _write_record(path, record, overrides, resuming)
    (path / "failure.txt").unlink(missing_ok=True)  # of an earlier sitting: this one is not over
    print(f"run folder: {path}", file=sys.stderr)
    try:
        metrics = task.run(RunFolder(path, record))
    except Exception as failure:
        lines = traceback.format_exception_only(failure)
        (path / "failure.txt").write_text("".join(lines) + "\n" + traceback.format_exc(), encoding="utf-8")
        raise
    return metrics[task.objective_metric]


def _require_further_work(task: Task, path: Path, record: dict[str, Any]) -> None:
    """Refuse to go on with a finished run that has nothing left to do.

    Raises:
        ConfigError: with what would give it more.
    """
    if isinstance(task, Pipeline):
        if not task.further_work(path):
            raise ConfigError(f"resume={path}: this pipeline is finished. Ask for further stages: task.stages=[…].")
        return
    length = OmegaConf.select(OmegaConf.create(record), "trainer.max_steps")
    if length is None:
        raise ConfigError(f"resume={path}: this run is finished. Leave resume out to start a new one.")
    done = json.loads((path / "result.json").read_text(encoding="utf-8"))["metrics"].get("steps", 0)
    if length <= done:
        raise ConfigError(
            f"resume={path}: this run is finished. Lengthen it with trainer.max_steps=<more than {done:.0f}>."
        )


def _write_record(path: Path, record: dict[str, Any], overrides: list[str], resuming: bool) -> None:
    aside = path / "config.yaml.part"
    OmegaConf.save(OmegaConf.create(record), aside)
    aside.replace(path / "config.yaml")
    sitting = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "overrides": overrides,
        "resumed": resuming,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "code": _code_version(),
    }
    with (path / "sittings.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(sitting) + "\n")


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
