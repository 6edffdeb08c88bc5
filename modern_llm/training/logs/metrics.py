"""`metrics.jsonl`: one row per log or evaluation, which a resumed run continues without gap or duplicate."""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

from modern_llm.processes import world


class MetricsLog:
    """Appends rows to a JSON-lines file; of several processes, the first one does.

    Args:
        path: the file; made with its first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; on disk when this returns, short of a power cut.

        Raises:
            FileNotFoundError: the folder is gone.
        """
        if not world().is_first:
            return
        # JSON has no NaN and no infinity.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain) + "\n")
        except FileNotFoundError as cause:
            raise FileNotFoundError(
                f"{self.path.parent} is gone: the folder of the run was moved or deleted while it was training."
            ) from cause

    def position(self) -> int:
        """Bytes so far: what a checkpoint remembers."""
        return self.path.stat().st_size if self.path.exists() else 0

    def rewind(self, position: int) -> None:
        """Drop every row behind `position`: the steps after the checkpoint are done again. A file that is shorter, cut
        or written anew by another hand, keeps its whole rows, and a warning says so."""
        if not world().is_first:
            return
        if not self.path.exists():
            if position:
                warnings.warn(f"{self.path} is gone; the rows before this checkpoint are missing", stacklevel=2)
            return
        size = self.path.stat().st_size
        if size < position:
            whole = self.path.read_bytes().rfind(b"\n") + 1
            warnings.warn(
                f"{self.path} has {size} bytes, and the checkpoint knows of {position}: rows before it are missing",
                stacklevel=2,
            )
            position = whole
        os.truncate(self.path, position)
