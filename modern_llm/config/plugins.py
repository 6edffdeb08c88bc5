"""Packages of a person's own, whose classes a configuration may name.

A plug-in is any package that can be imported: one of the current folder, or an installed one. The person allows it, by
`plugins: [my_lab]` in the command or in a file of their own, or by installing a package with an entry point
`modern_llm.plugins`. Records of runs are data and allow nothing: `plugins` is not kept in them.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from functools import lru_cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

OWN = "modern_llm"
_ENTRY_POINTS = "modern_llm.plugins"
_named: dict[str, None] = {}  # in their order


class PluginError(ValueError):
    """A plug-in that cannot be used; the message names it and the way out."""


def use_plugins(names: Iterable[str]) -> None:
    """Import plug-ins, and allow configurations to name their classes from here on. The current folder is searched
    last. Installed ones with an entry point are imported as well.

    Args:
        names: of packages or modules, as in an `import` statement.

    Raises:
        PluginError: one is not there, or fails when it is imported.
    """
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
            raise PluginError(f"plugins={name!r}: is no name of a package. Write it as in an import: plugins=[my_lab]")
        if str(Path.cwd()) not in sys.path and "" not in sys.path:
            sys.path.append(str(Path.cwd()))
        _import(name, f"plugins=[{name}]",
                "Start the command in the folder that has it, or install it: pip install -e <its folder>")  # fmt: skip
        _named[name] = None
    for name, package in _installed().items():
        _import(name, f"the installed plug-in {name} (of {package})", f"Mend it, or pip uninstall {package}")


def named_plugins() -> list[str]:
    """Those that this command was given by name."""
    return list(_named)


def owner_of(path: str) -> str | None:
    """The package that a dotted path to a class belongs to, ours or an allowed plug-in; None: to none of them."""
    return next((name for name in (OWN, *_named, *_installed()) if path.startswith(f"{name}.")), None)


def _import(name: str, told: str, remedy: str) -> None:
    try:
        import_module(name)
    except ModuleNotFoundError as cause:
        if cause.name is None or not f"{name}.".startswith(f"{cause.name}."):
            raise PluginError(f"{told}: imports {cause.name}, which is not installed. Install that.") from cause
        raise PluginError(f"{told}: there is no such package. {remedy}") from cause
    except Exception as cause:
        place = traceback.extract_tb(cause.__traceback__)[-1]
        raise PluginError(
            f"{told}: fails when it is imported, at {place.filename}:{place.lineno}: {type(cause).__name__}: {cause}. "
            f"{remedy if told.startswith('the') else 'Mend it'}."
        ) from cause


@lru_cache
def _installed() -> dict[str, str]:
    """Module of each entry point, and the distribution that has it."""
    return {point.module: point.dist.name if point.dist else "?" for point in entry_points(group=_ENTRY_POINTS)}
