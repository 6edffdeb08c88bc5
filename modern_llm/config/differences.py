"""Where two nested configurations differ."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in a nested dict that is no dict itself."""
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, tree


def differences(recorded: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ: key -> (recorded, wanted); a key that one side lacks counts as None there."""
    old, new = dict(leaves(recorded)), dict(leaves(wanted))
    return {k: (old.get(k), new.get(k)) for k in {**old, **new} if old.get(k) != new.get(k)}
