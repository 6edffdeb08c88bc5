"""Small files: written in one go, and read without trusting that they are whole, or what they should be."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

# No record of a run comes near these; what does is damaged, or made to hurt.
MOST_BYTES = 256 * 10**6
_MOST_YAML_BYTES = 4 * 10**6
_DEEPEST = 64


class DamagedError(ValueError):
    """A file that is not what it should be; the message says what is wrong with it, and not its name."""


def finite(content: Any) -> Any:
    """The same with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(content, dict):
        return {key: finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def json_text(content: Any, indent: int | None = None) -> str:
    """Strict JSON, which every reader takes."""
    return json.dumps(finite(content), indent=indent, ensure_ascii=False, allow_nan=False)


def write_text(path: Path, text: str) -> Path:
    """Write a file beside its place and rename it: a reader never sees half of it, and a full disk leaves the former.

    Raises:
        OSError: it cannot be written; nothing stays behind.
    """
    aside = path.with_name(f"{path.name}.part")
    aside.unlink(missing_ok=True)  # a link that somebody put there would be followed
    try:
        # What UTF-8 cannot hold, a lone surrogate, is written as JSON's own escape.
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
        return aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> Path:
    """Write a JSON file in one go.

    Raises:
        OSError: it cannot be written.
    """
    return write_text(path, json_text(content, indent=2))


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """A file's text, whatever its bytes.

    Raises:
        FileNotFoundError: there is no such file; a device or a pipe is none.
        DamagedError: it cannot be read, or is larger than such a file may be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        if path.stat().st_size > most_bytes:
            raise DamagedError(f"it has {path.stat().st_size:,} bytes, and {most_bytes:,} are the most")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as cause:
        raise DamagedError(f"it cannot be read: {cause.strerror}") from cause


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is torn, too large or nested too deeply.
    """
    return parsed_json(read_text(path))


def parsed_json(text: str) -> Any:
    """A JSON text.

    Raises:
        DamagedError: as in `read_json`.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise DamagedError("it is nested too deeply") from None
    except ValueError as fault:
        raise DamagedError(f"it is no JSON: {fault}" if text.strip() else "it is empty") from None
    if _depth(content) > _DEEPEST:
        raise DamagedError("it is nested too deeply")
    return content


def _depth(content: Any) -> int:
    """Levels of lists and tables, counted no further than is asked about."""
    level, depth = [content], 0
    while level and depth <= _DEEPEST:
        below = [x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list)]
        level, depth = [value for values in below for value in values], depth + bool(below)
    return depth


def read_yaml(path: Path) -> Any:
    """A YAML file as plain data. Its tags make nothing, and what stands twice is written twice.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it is torn, too large, nested too deeply, or has aliases, which could stand for anything.
    """
    return parsed_yaml(read_text(path, _MOST_YAML_BYTES))


def parsed_yaml(text: str) -> Any:
    """A YAML text.

    Raises:
        DamagedError: as in `read_yaml`.
    """
    import yaml

    if len(text) > _MOST_YAML_BYTES:
        raise DamagedError(f"it has {len(text):,} characters, and {_MOST_YAML_BYTES:,} are the most")
    loader, depth = _loader(), 0
    try:
        # Events come one after the other, so that no depth is too deep to be counted.
        for event in yaml.parse(text, loader):
            if isinstance(event, yaml.AliasEvent):
                raise DamagedError("it has a YAML alias, and records have none")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEEPEST:
                raise DamagedError("it is nested too deeply")
        return yaml.load(text, loader)
    except DamagedError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as fault:
        raise DamagedError(f"it is no YAML: {' '.join(str(fault).split())[:200]}") from None


@lru_cache
def _loader() -> Any:
    """YAML as configurations are read: 1e-3 is a number, and a date is a text."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    number = re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)"
        r"|\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    )
    Loader.yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in ("float", "timestamp")]
        for first, rules in Loader.yaml_implicit_resolvers.items()
    }
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    return Loader
