"""What differs between configurations, and what is the same for all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# A task's link to another group says nothing of its own: the group is compared where it stands.
_LINK = re.compile(r"^\$\{[\w.]+\}$")


class Absent:
    """The value of a key that a configuration does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = Absent()


@dataclass
class Differences:
    """Trees compared.

    Attributes:
        varying: dotted key -> tree's index -> value. Where trees hold parts of different kinds, the part's key has the
            name of its class; its own keys are compared among the trees with the same class.
        same: dotted key, value, and `part=Class` where the key is the same for those trees only that have this part.
    """

    varying: dict[str, dict[int, Any]] = field(default_factory=dict)
    same: list[tuple[str, Any, str]] = field(default_factory=list)


def differences(trees: Mapping[int, Mapping[str, Any]]) -> Differences:
    """Compare nested dicts.

    Args:
        trees: index -> tree.
    """
    found = Differences()
    if trees:
        _compare("", dict(trees), "", found)
    return found


def setting_text(value: Any) -> str:
    """A setting as YAML would say it, on one line."""
    if isinstance(value, Absent):
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The shortest end of each dotted key that no other key ends with: `model.rope.theta` -> `theta`."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        names[key] = next((end for end in ends if sum(k == end or k.endswith(f".{end}") for k in keys) == 1), key)
    return names


def _kind(node: Any) -> Any:
    """The class of a part; of anything else, the value."""
    if isinstance(node, Mapping) and node:
        return str(node.get("_target_", "{…}")).rpartition(".")[2]
    return node


def _same_value(one: Any, other: Any) -> bool:
    """1 and 1.0 are one setting; 1 and true are two."""
    return bool(one == other and isinstance(one, bool) == isinstance(other, bool))


def _compare(key: str, nodes: dict[int, Any], where: str, found: Differences) -> None:
    if all(isinstance(node, str) and _LINK.match(node) for node in nodes.values()):
        return
    if any(_is_plain(node) for node in nodes.values()):  # a table that some lack: each key of it is one that they lack
        nodes = {index: {} if node is ABSENT else node for index, node in nodes.items()}
        if all(node == {} or _is_plain(node) for node in nodes.values()):
            _compare_below(key, nodes, where, found)
            return
    kinds = {index: _kind(node) for index, node in nodes.items()}
    first = next(iter(kinds.values()))
    agree = all(_same_value(first, kind) for kind in kinds.values())
    has_class = any(isinstance(node, Mapping) and "_target_" in node for node in nodes.values())
    parts = {index: node for index, node in nodes.items() if isinstance(node, Mapping) and node}
    if not agree:
        found.varying[key] = kinds
    elif key and (not parts or has_class):
        found.same.append((key, first, where))
    classes: dict[str, dict[int, Any]] = {}
    for index, node in parts.items():
        classes.setdefault(str(kinds[index]), {})[index] = node
    for name, members in classes.items():
        inner = where if agree else ", ".join(filter(None, [where, f"{key}={name}"]))
        _compare_below(key, members, inner, found)


def _is_plain(node: Any) -> bool:
    return isinstance(node, Mapping) and bool(node) and "_target_" not in node


def _compare_below(key: str, members: dict[int, Any], where: str, found: Differences) -> None:
    for child in dict.fromkeys(str(k) for node in members.values() for k in node):
        if child != "_target_":
            below = {index: node.get(child, ABSENT) for index, node in members.items()}
            _compare(f"{key}.{child}" if key else child, below, where, found)
