"""Parts of a composed configuration as the overrides that make them again, so that a run can hand them to others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from modern_llm.config.composing import composed
from modern_llm.config.differences import differences
from modern_llm.config.instantiate import ConfigError

# Texts that Hydra takes as they are, and words that it would take for something else.
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
_WORDS = ("null", "true", "false", "nan", "inf")
# What a run of a pipeline or a plan may be given: its own groups and keys.
_OWN = (
    "task",
    "model",
    "trainer",
    "hardware",
    "logger",
    "paths",
    "seed",
    "name",
    "experiment",
    "debug",
    "tags",
    "vars",
)


def override(key: str, value: Any) -> str:
    """`key=value` in Hydra's grammar."""
    return f"{key}={_text(value)}"


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and value.lower() not in _WORDS else quoted(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_text(v)}" for name, v in value.items()) + "}"
    return "[" + ",".join(map(_text, value)) + "]"


def quoted(text: str) -> str:
    """A text between quotes; a backslash is itself unless it stands before a quote."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def key_of(text: str) -> str:
    """The key or group that an override is about."""
    return text.lstrip("+~").split("=", 1)[0]


def group_of(text: str) -> str:
    """The outermost group that an override is about: `model` of `++model.rope.theta=1` and of `model/rope=yarn`."""
    return re.split(r"[=/.@]", text.lstrip("+~"), maxsplit=1)[0]


def require_own(key: str, overrides: Sequence[str]) -> None:
    """Refuse what a run that another command starts may not be given, whoever wrote it down: anything of Hydra's, a
    flag, a place outside of the task and its links, a file from outside the groups' folders, an interpolation.

    Args:
        key: where the overrides stand.
        overrides: in Hydra's grammar.

    Raises:
        ConfigError: with the override.
    """
    for text in overrides:
        told = f"{key}: {text!r}"
        if "${" in text:
            raise ConfigError(f"{told}: holds an interpolation. Write the value.")
        try:
            (parsed,) = OverridesParser.create().parse_overrides([text])
        except HydraException as cause:
            raise ConfigError(f"{told}: is no override ({str(cause).splitlines()[0]}). Write key=value.") from cause
        name = parsed.key_or_group
        if any(group_of(place) not in _OWN for place in (name, parsed.package or name)):
            raise ConfigError(f"{told}: may set {', '.join(_OWN)} and what is in them, and nothing else. Leave it out.")
        # A choice is a file of its group's folder; a name with dots or slashes could be one anywhere.
        is_choice = "." not in name and name not in ("seed", "name", "tags")
        value = parsed.value()
        values = value if isinstance(value, list) else [value]
        if is_choice and not all(v is None or re.fullmatch(r"[\w-]+", str(v)) for v in values):
            raise ConfigError(f"{told}: names no choice of {name}. Leave it out.")
        if "_target_" in text:
            raise ConfigError(f"{told}: names a class. Choose a file of a group instead.")


def laid_over(*layers: Sequence[str]) -> list[str]:
    """Overrides of which a later one replaces an earlier one of the same key; another choice for a group drops what
    was set inside the former choice."""
    merged: dict[str, str] = {}
    for layer in layers:
        for text in layer:
            group = key_of(text)
            for inside in [key for key in merged if key.startswith((f"{group}.", f"{group}/"))]:
                del merged[inside]
            merged.pop(group, None)
            merged[group] = text
    return list(merged.values())


def chosen(*groups: str) -> list[str]:
    """The choices of the command that runs now for these groups and the groups inside them."""
    choices = {str(group): choice for group, choice in HydraConfig.get().runtime.choices.items()}
    return [
        f"{group}={choice}"
        for group, choice in choices.items()
        if group.split("/")[0] in groups and "@" not in group and choice is not None
    ]


def as_overrides(
    config: Mapping[str, Any] | DictConfig, groups: Sequence[str], choices: Sequence[str] = ()
) -> list[str]:
    """What, on top of the defaults, makes these parts of a configuration.

    Args:
        config: composed, or a record.
        groups: such as `hardware` and `seed`.
        choices: of groups, to begin with; a part whose choice brings keys of its own needs it.
    """
    plain = composed(choices)
    changes = {group: differences(_content(plain, group), _content(config, group)) for group in groups}
    return [
        *choices,
        *(
            override(f"++{group}.{key}" if key else f"++{group}", new)
            for group, changed in changes.items()
            for key, (_, new) in changed.items()
        ),
    ]


def _content(config: Mapping[str, Any] | DictConfig, group: str) -> Any:
    node = config[group]
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return plain if isinstance(plain, dict) else {"": plain}
