"""What is made once and kept: folders in the cache that are known by content, and made anew when they are damaged."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from modern_llm import manifest

_SECONDS_A_PART_MAY_LIVE = 24 * 3600  # longer than anything takes to be made


def kept(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, whole.

    Args:
        folder: where it is kept; its name says what is in it.
        make: writes its files into an empty folder.

    Returns:
        `folder`, as it was found or made just now. Two processes that make it at once make the same.
    """
    fault = manifest.fault(folder) if folder.exists() else ""
    if fault is None:
        return folder
    if fault:
        print(f"the cache {folder} is damaged ({fault}); it is made anew", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _forget_parts(folder.parent)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        make(aside)
        manifest.write(aside)
        try:
            aside.rename(folder)
        except OSError:
            if manifest.fault(folder) is not None:  # not because another process was faster
                raise
        manifest.sync(folder.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _forget_parts(where: Path) -> None:
    """Remove what processes left that were killed while they made something."""
    for part in where.glob("*.part"):
        try:
            old = time.time() - part.stat().st_mtime > _SECONDS_A_PART_MAY_LIVE
        except OSError:
            continue
        if old:
            shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)
