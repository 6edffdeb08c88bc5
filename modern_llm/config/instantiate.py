"""From YAML nodes to objects.

A node with `_target_` is checked before anything is built: the target must be a settings class of this project, its
keys must be parameters of the target, and their values must have the annotated types. All targets import without torch,
so a wrong configuration fails in a moment. What is built is what was checked: nothing is resolved in between.
"""

from __future__ import annotations

import difflib
import inspect
import re
import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from modern_llm.config.choices import choices_of, target_of
from modern_llm.config.names_of_the_field import key_for
from modern_llm.config.plugins import OWN, owner_of
from modern_llm.config.renamed import target_now

# Of Hydra's own `instantiate`; here a node is a settings class and its values.
_HYDRAS_KEYS = ("_partial_", "_convert_", "_recursive_", "_args_")
# Groups that a task links to: a person names them without the task, and records keep them as links.
LINKS = ("model", "trainer", "hardware", "logger", "paths", "seed")


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names key, value and remedy."""


def nearest(key: str, known: list[str]) -> str:
    """` Did you mean 'x'?`, or the known ones where nothing is near."""
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(known))}."


def _as_typed(key: str) -> str:
    """`task.model.rope.theta` is `model.rope.theta` to the person who types it."""
    head, _, rest = key.partition(".")
    return rest if head == "task" and rest.split(".")[0] in LINKS else key


def find_target(path: str, key: str) -> Any:
    """The class behind a `_target_`.

    Raises:
        ConfigError: of a package that nobody has allowed, not there, or no class of settings.
    """
    told = f"{key}._target_={path!r}"
    # Nothing else is ever called by a configuration, whoever wrote it.
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", path) or not owner_of(path):
        raise ConfigError(f"{told}: only parts of {OWN} may be instantiated, and those of plug-ins.{_allowing(path)}")
    module, _, name = path.rpartition(".")
    try:
        target = getattr(import_module(module), name)
    except (ImportError, AttributeError) as cause:
        now = target_now(path)
        remedy = f" It is {now} now." if now != path else ""
        raise ConfigError(f"{told}: there is no such class ({cause}).{remedy}") from cause
    if not inspect.isclass(target):
        raise ConfigError(f"{told}: is no class.")
    if not owner_of(f"{target.__module__}."):
        raise ConfigError(
            f"{told}: only parts of {OWN} may be instantiated, and those of plug-ins; this is {target.__module__}'s."
        )
    # Settings hold values and check them; other classes do things when they are made.
    if not is_dataclass(target):
        raise ConfigError(f"{told}: only settings may be instantiated, and {name} is no dataclass.")
    return target


def _allowing(path: Any) -> str:
    """What lets a configuration name a class of another package, where there could be one."""
    package = str(path).split(".")[0]
    if not package.isidentifier() or package in sys.stdlib_module_names or package == OWN:
        return ""
    return f" If {package} is yours, or you trust it, add plugins=[{package}] to the command."


def check(node: Any, key: str = "task") -> None:
    """Check a resolved container: targets, keys and types, at every depth.

    Raises:
        ConfigError: with the key, the value and what would be right.
    """
    if isinstance(node, list):
        for index, item in enumerate(node):
            check(item, f"{key}[{index}]")
    if not isinstance(node, dict):
        return
    for name in _HYDRAS_KEYS:
        if name in node:
            raise ConfigError(f"{_as_typed(key)}.{name}={node[name]!r}: is not used here. Leave it out.")
    if "_target_" in node:
        _check_keys(node, key)
    for name, value in node.items():
        check(value, f"{key}.{name}")


def _check_keys(node: dict[str, Any], key: str) -> None:
    target = find_target(node["_target_"], _as_typed(key))
    parameters = inspect.signature(target).parameters
    hints = get_type_hints(target)
    for name, parameter in parameters.items():
        full = _as_typed(f"{key}.{name}")
        if node.get(name, "???" if parameter.default is parameter.empty else None) == "???":
            raise ConfigError(f"{full}: is missing. Set it: {full}=…")
    for name, value in node.items():
        if name == "_target_":
            continue
        full = _as_typed(f"{key}.{name}")
        if name not in parameters:
            raise ConfigError(
                f"{full}={value!r}: {target.__name__} has no such key. {_suggested(name, full, list(parameters))}"
            )
        if name in hints and not _fits(value, hints[name]):
            shown = value["_target_"] if isinstance(value, dict) and "_target_" in value else value
            raise ConfigError(f"{full}={shown!r}: must be {_in_words(hints[name])}. {_fitting(full, hints[name])}")


def _suggested(name: str, full: str, known: list[str]) -> str:
    field = key_for(full)
    return f"It is {field}." if field is not None else nearest(name, known)


def _fitting(key: str, hint: Any) -> str:
    """The way out where a value does not fit: the choices of its group that do."""
    group = key.replace(".", "/")
    targets = {choice: target_of(group, choice) for choice in choices_of(group)}
    names = [name for name, target in targets.items() if target is not None and _fits({"_target_": target}, hint)]
    if not names:
        return "Change the value."
    hints = {"pretrained": "model.name=<hub name or folder>", "from_run": "model.path=<run folder>"}
    more = [f"model={name} with {hints[name]}" for name in names if group == "model" and name in hints]
    own = [name for name in names if not (group == "model" and name in hints)]
    return f"Choose {group}={', '.join(own)}" + "".join(f"; or {way}" for way in more) + "."


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, a) for a in arguments)
    if origin is Literal:
        return any(value is a or (type(value) is type(a) and value == a) for a in arguments)
    if origin is Mapping:
        return (
            isinstance(value, dict) and "_target_" not in value and all(_fits(v, arguments[1]) for v in value.values())
        )
    if origin is list:
        return isinstance(value, list) and all(_fits(v, arguments[0]) for v in value)
    if origin is tuple:
        return (
            isinstance(value, list | tuple)
            and len(value) == len(arguments)
            and all(_fits(v, a) for v, a in zip(value, arguments, strict=True))
        )
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if isinstance(value, dict) and "_target_" in value and inspect.isclass(hint):
        try:
            target = find_target(value["_target_"], "")
        except ConfigError:
            return True  # its own check says it better
        return _meets(target, hint) if getattr(hint, "_is_protocol", False) else issubclass(target, hint)
    return False


def _meets(target: type, protocol: type) -> bool:
    """Whether a class of settings has what a protocol asks for."""
    asked = {
        name
        for base in protocol.__mro__
        if getattr(base, "_is_protocol", False) and base.__name__ != "Protocol"
        for name in (*vars(base), *vars(base).get("__annotations__", {}))
        if not name.startswith("_") or name == "__call__"
    }
    own = {f.name for f in fields(target)}
    return all(name in own or hasattr(target, name) for name in asked)


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(a) for a in arguments)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is Mapping:
        return f"names, each with {_in_words(arguments[1])}"
    if origin in (list, tuple):
        return "a list of " + " and ".join(dict.fromkeys(_in_words(a) for a in arguments))
    if inspect.isclass(hint) and hint.__module__.startswith(f"{OWN}."):
        return f"{'an' if hint.__name__[0] in 'AEIO' else 'a'} {hint.__name__}"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "null"}
    return names.get(hint, f"a {getattr(hint, '__name__', hint)}")


def build(node: Any, key: str = "task") -> Any:
    """Build a node and all below it.

    Args:
        node: a `DictConfig`, or a plain container, with `_target_`. A plain one is taken as it stands: nothing in it is
            resolved, so that one from a file can be handed over.
        key: where it stands, for messages.

    Raises:
        ConfigError: as in `check`, or what a constructor refused.
    """
    container = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    check(container, key)
    return _made(container, key)


def _made(node: Any, key: str) -> Any:
    if isinstance(node, list):
        return [_made(item, f"{key}[{index}]") for index, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    values = {name: _made(value, f"{key}.{name}") for name, value in node.items() if name != "_target_"}
    if "_target_" not in node:
        return values
    try:
        return find_target(node["_target_"], "")(**values)
    except (ValueError, TypeError, OSError) as cause:
        raise ConfigError(_told_of(str(cause), _as_typed(key))) from cause


def _told_of(message: str, key: str) -> str:
    """What settings of a model said, who take themselves for `model`, of those at `key`."""
    home = message.partition("=")[0].rpartition(".")[0]
    if home.split(".")[0] != "model" or key.split(".")[0] == "model":
        return message
    return key + message.removeprefix(home)


def as_node(value: Any) -> Any:
    """Settings as plain data, from which `build` makes equal ones."""
    if is_dataclass(value) and not isinstance(value, type):
        target = f"{type(value).__module__}.{type(value).__qualname__}"
        return {"_target_": target} | {f.name: as_node(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {k: as_node(v) for k, v in value.items()}
    return [as_node(v) for v in value] if isinstance(value, list | tuple) else value


def describe(objects: dict[str, Any]) -> str:
    """YAML from which `build` makes equal objects."""
    return OmegaConf.to_yaml(OmegaConf.create(as_node(objects)))
