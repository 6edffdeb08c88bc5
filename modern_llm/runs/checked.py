"""A composed configuration, checked: what is wrong with it is told before anything is loaded or made."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from modern_llm.config.instantiate import LINKS, ConfigError, build, check, nearest
from modern_llm.config.overrides import group_of, key_of
from modern_llm.config.plugins import use_plugins
from modern_llm.config.records import link, linked
from modern_llm.experiment.contract import Task
from modern_llm.processes import world
from modern_llm.runs.resume import settled

_ROOT_KEYS = ("name", "seed", "resume", "tags", "vars", "plugins", *LINKS, "task")


def checked(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The record of a composed configuration, whose task has been built.

    Args:
        config: composed.
        overrides: as typed.

    Raises:
        ConfigError: anything wrong with it.
    """
    record = settled_and_typed(config, overrides)
    task_of(record)
    return record


def settled_and_typed(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The same for a run whose inputs may not be there yet: keys and types are checked, and nothing is built.

    Raises:
        ConfigError: anything wrong with it.
    """
    check_root(config)
    check_overrides(config, overrides)
    record = settled(config)
    check(linked(record))
    return record


def task_of(record: dict[str, Any]) -> Task:
    """The task of a record.

    Raises:
        ConfigError: it cannot be built, or not run here.
    """
    task = build(linked(record))
    if not (hasattr(task, "run") and hasattr(task, "objective_metric")):
        raise ConfigError(f"task={record['task'].get('_target_')!r}: is no task. Choose one: task=python_docs")
    _require_usable(task, record)
    return task


def _require_usable(task: Any, record: dict[str, Any]) -> None:
    """What only a run asks for: a package that is not always there, a cache that can be one."""
    _require_processes(task, record, world().count)
    package = getattr(getattr(task, "logger", None), "package", None)
    if package is not None and find_spec(package) is None:
        raise ConfigError(
            f"logger={package}: the package {package} is not installed. "
            f"Run `pip install modern-llm[{package}]`, or leave it out for metrics.jsonl alone."
        )
    for key, place in (record.get("paths") or {}).items():
        folder = Path(str(place)).expanduser().absolute()
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if place is not None and not there.is_dir():
            raise ConfigError(f"paths.{key}={place}: {there} is a file, so no folder can be there. Give another place.")


def _require_processes(task: Any, record: dict[str, Any], count: int) -> None:
    """What only a run of several processes asks for, or of one."""
    name = str(record["task"].get("_target_")).rsplit(".", 1)[-1]
    sharding = getattr(getattr(task, "hardware", None), "sharding", "none")
    if count == 1:
        if sharding != "none":
            raise ConfigError(
                f"hardware.sharding={sharding}: there is one process, and nothing to divide. Use none, or start "
                "several: torchrun --standalone --nproc-per-node 2 launch.py …"
            )
        return
    if not getattr(task, "may_have_processes", False):
        raise ConfigError(
            f"--nproc-per-node: {name} is a task for one process, not {count}. Start it without torchrun."
        )
    if task.trainer.batch_size < count:
        raise ConfigError(
            f"trainer.batch_size={task.trainer.batch_size}: has fewer rows than there are processes ({count}). "
            "Raise it, or start fewer."
        )
    if sharding == "full" and task.trainer.batch_size % count:
        raise ConfigError(
            f"trainer.batch_size={task.trainer.batch_size}: must be a multiple of the {count} processes, which gather "
            "the weights together (hardware.sharding=full). Change it, or use hardware.sharding=optimizer."
        )
    optimizer = task.trainer.optimizer
    if sharding != "none" and not optimizer.shards:
        raise ConfigError(
            f"hardware.sharding={sharding}: the state of {type(optimizer).__name__} cannot be divided. Use none."
        )
    if sharding != "none" and task.hardware.precision == "fp16":
        raise ConfigError(f"hardware.sharding={sharding}: goes with fp32 and bf16, not with fp16. Use none.")


def check_root(config: DictConfig) -> None:
    """Refuse keys at the top that nothing reads, and import the plug-ins that they name.

    Raises:
        ConfigError: with the key that is meant.
    """
    for key in map(str, config):
        if key not in (*_ROOT_KEYS, "hydra"):
            raise ConfigError(
                f"{key}={config[key]!r}: there is no such key. {nearest(key, list(_ROOT_KEYS))} "
                "Variables of your own go below vars, as vars.width, and are used as ${vars.width}."
            )
    tags = config.get("tags")
    if tags is not None and not (OmegaConf.is_list(tags) and all(isinstance(tag, str | int | float) for tag in tags)):
        raise ConfigError(f"tags={tags!r}: must be a list of texts, as tags=[baseline,paper]. Change the value.")
    plugins = config.get("plugins")
    if plugins is not None and not OmegaConf.is_list(plugins):
        raise ConfigError(f"plugins={plugins!r}: must be a list of packages, as plugins=[my_lab]. Change the value.")
    use_plugins(plugins or [])
    if not OmegaConf.is_dict(config.get("task")):
        raise ConfigError(f"task={config.get('task')!r}: is no task. Choose one: task=python_docs")


def _said_elsewhere(typed: str, name: str) -> str:
    return f"{typed}: {name} is set without the task, for the whole command. Write {name}{typed[5 + len(name) :]}=…"


def check_overrides(config: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse overrides of a group that the task does not read, and of a link to one that it does; and what a file puts
    in the place of a link.

    Raises:
        ConfigError: with what is right.
    """
    read = [name for name in LINKS if name in config.task]
    for override in overrides:
        key, group = key_of(override), group_of(override)
        below = key.split("@")[0].replace("/", ".").split(".")
        if below[0] == "task" and len(below) > 1 and below[1] in LINKS:
            raise ConfigError(_said_elsewhere(".".join(below), below[1]))
        # Every run has a folder, which `paths` places.
        if group in LINKS and group not in (*read, "paths"):
            handed_on = f" Give it to its runs: task.baseline=[{override}]" if "baseline" in config.task else ""
            reads = ", ".join(read) or "none"
            raise ConfigError(f"{override}: this task does not read {group}. It reads {reads}.{handed_on}")
        if override.startswith("~") and key.count(".") + key.count("/") == 1 and group in LINKS:
            raise ConfigError(
                f"{override}: a part may be chosen, and not be taken out. Choose one: {key.replace('.', '/')}=…"
            )
    task = OmegaConf.to_container(config.task, resolve=False)
    assert isinstance(task, dict)
    for name in LINKS:
        if name in task and task[name] != link(name):
            raise ConfigError(_said_elsewhere(f"task.{name}", name))
