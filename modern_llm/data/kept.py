"""What is made once and kept: folders in the cache that are known by content, and made anew when they are damaged."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modern_llm import manifest
from modern_llm.locks import alone
from modern_llm.processes import world

_SECONDS_A_PART_MAY_LIVE = 24 * 3600  # longer than anything takes to be made


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, whole.

    Args:
        folder: where it is kept; its name says what is in it.
        make: writes its files into an empty folder.

    Returns:
        `folder`, as it was found or made just now. Of several processes that want it at once, one makes it and the
        others wait.
    """
    if folder.exists() and manifest.fault(folder) is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)

    def wait_for(who: str) -> None:
        if world().is_first:
            print(f"waiting for {who}, which makes {folder}", file=sys.stderr, flush=True)

    with alone(folder.with_name(f"{folder.name}.lock"), wait_for):
        fault = manifest.fault(folder) if folder.exists() else ""
        if fault is None:
            return folder
        if fault:
            print(f"the cache {folder} is damaged ({fault}); it is made anew", file=sys.stderr, flush=True)
            shutil.rmtree(folder, ignore_errors=True)
        _make(folder, make)
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    _forget_parts(folder.parent)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        make(aside)
        manifest.write(aside)
        try:
            aside.rename(folder)
        except OSError:
            if manifest.fault(folder) is not None:  # where files cannot be locked, another process may be faster
                raise
        manifest.sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _forget_parts(where: Path) -> None:
    """Remove what processes left that were killed while they made something."""
    for part in where.glob("*.part"):
        try:
            old = time.time() - part.stat().st_mtime > _SECONDS_A_PART_MAY_LIVE
        except OSError:
            continue
        if old:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
