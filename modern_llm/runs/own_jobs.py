"""What a command hands to the runs that it starts: checked overrides, below which its own machine and paths lie."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from modern_llm.checks import require
from modern_llm.config.composing import composed
from modern_llm.config.instantiate import LINKS, ConfigError
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.config.overrides import as_overrides, group_of, require_own
from modern_llm.runs.checked import checked

_SHARED = ("hardware", "logger", "paths")


def named_overrides(key: str, given: Any) -> dict[str, list[str]]:
    """A table of names and their overrides.

    Args:
        key: that it is the value of.
        given: the table; None: an empty one.

    Raises:
        ValueError: it is none, or a name or an override is none.
        ConfigError: an override that no run may be given.
    """
    require(given is None or isinstance(given, dict), key, given, "is no table of names", "Write name: [overrides]")
    for name, overrides in (given or {}).items():
        require(re.fullmatch(r"\w+", str(name)) is not None, key, name, "is no name", "Use letters, digits and _")
        right = isinstance(overrides, list) and all(isinstance(text, str) for text in overrides)
        require(right, f"{key}.{name}", overrides, "must be a list of overrides",
                'Write ["model.use_attention_sinks=true"]')  # fmt: skip
        require_own(f"{key}.{name}", overrides)
    return {str(name): list(overrides) for name, overrides in (given or {}).items()}


class OwnJobs:
    """Makes whole overrides of the runs of a command.

    Args:
        record: of the command, whose machine, logger and paths all of them have.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        self._shared = as_overrides(record, [group for group in _SHARED if group in record])

    def whole(self, own: Sequence[str], task: Mapping[str, Any] | None = None) -> list[str]:
        """A run's own overrides, on top of those of the command that its task reads.

        Args:
            own: of the run.
            task: that they compose to; None: it is composed for that.
        """
        task = composed(own).task if task is None else task
        read = {"paths", *(link for link in LINKS if link in task)}
        return [*(text for text in self._shared if group_of(text) in read), *own]

    def checked(self, key: str, own: Sequence[str]) -> DictConfig:
        """The configuration of a run, whose task has been built; nothing is loaded.

        Args:
            key: that its overrides come from.
            own: of the run.

        Raises:
            ConfigError: it cannot run, or does not train.
        """
        try:
            overrides = self.whole(own)
            config = composed(overrides)
            checked(config, overrides)
        except Exception as cause:
            if not is_mistake(cause):
                raise
            raise ConfigError(f"{key}: {in_words(cause, own)}") from cause
        if "trainer" not in config.task:
            raise ConfigError(f"{key}: task={config.task.get('_target_')} does not train. Choose one that does.")
        return config
