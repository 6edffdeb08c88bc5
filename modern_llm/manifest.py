"""A folder whose files are known by size and hash, so that damage is found before anything is read from it."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from modern_llm.files import parsed_json, read_text

NAME = "manifest.json"
_LARGEST = 2**24  # bytes of a manifest
_LARGEST_FILE = 2**40  # which would take an hour to be hashed; no model here comes near


def write(folder: Path, known: Mapping[str, str] | None = None, **facts: Any) -> None:
    """Write the manifest of all files in a folder, and force them all to disk, the manifest last.

    Args:
        folder: holds the files, at any depth.
        known: SHA-256 of files that were hashed while they were written, by their paths in the folder.
        facts: further ones to keep in the manifest.
    """
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    hashes = {name: (known or {}).get(name) or _hash(path) for name, path in paths.items()}
    files = {name: {"bytes": path.stat().st_size, "sha256": hashes[name]} for name, path in paths.items()}
    (folder / NAME).write_text(json.dumps({**facts, "files": files}, indent=1))
    for path in [*paths.values(), folder / NAME, folder]:
        sync(path)


def read(folder: Path) -> dict[str, Any]:
    """The manifest.

    Raises:
        OSError, ValueError: it is not there, or is none.
    """
    if not stat.S_ISREG((folder / NAME).lstat().st_mode):
        raise ValueError(f"{NAME} is no plain file")
    content = parsed_json(read_text(folder / NAME, _LARGEST))
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise ValueError(f"{NAME} lists no files")
    return content


def fault(folder: Path) -> str | None:
    """What is wrong with a folder, or None where every file is as the manifest says. Only regular files inside the
    folder are opened, whatever the manifest names."""
    try:
        for name, fact in read(folder)["files"].items():
            inside = PurePosixPath(name)
            if inside.is_absolute() or ".." in inside.parts:
                return f"{name!r} lies outside the folder"
            path = folder / name
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                return f"{name} is no plain file"
            if status.st_size != fact["bytes"]:
                return f"{name} has {status.st_size} bytes instead of {fact['bytes']}"
            if status.st_size > _LARGEST_FILE:
                return f"{name} has {status.st_size} bytes, and {_LARGEST_FILE} are the most"
            if _hash(path) != fact["sha256"]:
                return f"{name} has another content than was written"
    except (OSError, ValueError, KeyError, TypeError) as cause:
        return f"{type(cause).__name__}: {cause}"
    return None


def sync(path: Path) -> None:
    """Force a file or folder to disk; Windows does not open folders."""
    if os.name == "nt" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
