"""The choices of the groups in `conf/`, read from its files without composing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modern_llm.defaults import CONFIG_FOLDER
from modern_llm.files import DamagedError, read_yaml


def is_group(name: str) -> bool:
    """Whether a name such as `task/data` is that of a group."""
    return bool(name) and (CONFIG_FOLDER / name).is_dir()


def choices_of(group: str) -> list[str]:
    """Names of a group's choices, bases left out."""
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml") if not is_base(path))


def is_base(path: Path) -> bool:
    """Whether a file is there for others to build upon: it leaves something open, and its first line begins with
    `# Base:`."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.readline(100).startswith("# Base:")
    except OSError:
        return False


def target_of(group: str, choice: str) -> str | None:
    """The `_target_` that a choice builds: its own, or that of the file of the same group that it builds upon."""
    try:
        content: Any = read_yaml(CONFIG_FOLDER / group / f"{choice}.yaml")
    except (DamagedError, FileNotFoundError):
        return None
    if not isinstance(content, dict):
        return None
    if "_target_" in content:
        return str(content["_target_"])
    bases = [base for base in content.get("defaults", []) if isinstance(base, str) and base != "_self_"]
    return next((found for base in bases if (found := target_of(group, base)) is not None), None)
