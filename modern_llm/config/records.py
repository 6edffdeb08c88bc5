"""Configurations that stand in files: of runs, of checkpoints. They may come from anyone, so they are data, and nothing
in them is resolved: of interpolations there are only the links from a task to the groups that it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modern_llm.config.differences import leaves
from modern_llm.config.instantiate import LINKS, ConfigError
from modern_llm.config.renamed import record_now
from modern_llm.files import DamagedError, read_yaml


def read_record(path: Path) -> dict[str, Any]:
    """A configuration as plain data, with the names of now.

    Args:
        path: of a `config.yaml`.

    Raises:
        ConfigError: it is not there, damaged, or holds interpolations.
    """
    try:
        record = record_now(read_yaml(path))
    except FileNotFoundError as cause:
        raise ConfigError(str(cause)) from cause
    except DamagedError as cause:
        raise ConfigError(f"{path}: is damaged: {cause}. Use another run or checkpoint.") from cause
    if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
        raise ConfigError(f"{path}: is damaged: it is no table of settings. Use another run or checkpoint.")
    require_plain(record, str(path))
    return record


def link(name: str) -> str:
    """How a task's link to a group is written."""
    return f"${{{name}}}"


def require_plain(record: dict[str, Any], where: str) -> None:
    """Refuse what a resolver could act upon.

    Args:
        record: a configuration, its task's links aside.
        where: it stands, for the message.

    Raises:
        ConfigError: with the key.
    """
    for key, value in leaves(record):
        own = key.partition(".")[2] if key.startswith("task.") else ""
        if own in LINKS and value == link(own):
            continue
        if "${" in f"{key} {value}":
            raise ConfigError(
                f"{where}: {key}={value!r} holds an interpolation, and a record holds plain values. Write the value."
            )


def linked(record: dict[str, Any]) -> dict[str, Any]:
    """The task of a record, with the groups that it links to in place of the links.

    Raises:
        ConfigError: there is no task, or nothing behind a link.
    """
    task = record.get("task")
    if not isinstance(task, dict):
        raise ConfigError(f"task={task!r}: is no task. Choose one: task=python_docs")
    for name in LINKS:
        if task.get(name) == link(name) and name not in record:
            raise ConfigError(f"task.{name}: links to {name}, which is not there.")
    return {key: record[key] if key in LINKS and value == link(key) else value for key, value in task.items()}
