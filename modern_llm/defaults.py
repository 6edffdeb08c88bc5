"""Defaults of settings stand once, in `conf/`: classes read them there, so Python and the command line agree."""

from __future__ import annotations

import copy
from dataclasses import field
from functools import lru_cache
from pathlib import Path
from typing import Any

from modern_llm.files import read_yaml

CONFIG_FOLDER = Path(__file__).resolve().parent / "conf"


class Defaults:
    """The values that a file of `conf/` states.

    Args:
        file: its name without the suffix, such as `trainer/default`.
        node: of the file, such as `evaluation`; empty: all of it.
    """

    def __init__(self, file: str, node: str = "") -> None:
        self.file, self.node = file, node

    def __call__(self, key: str) -> Any:
        """The default of a dataclass's field.

        Raises:
            KeyError: the file states no such key.
        """
        content = _content(self.file)
        value = (content[self.node] if self.node else content)[key]
        if isinstance(value, list | dict):
            return field(default_factory=lambda: copy.deepcopy(value))
        return value


ROOT = Defaults("config")


@lru_cache
def _content(file: str) -> Any:
    return read_yaml(CONFIG_FOLDER / f"{file}.yaml")
