"""`metrics.jsonl`: one row per log or evaluation, which a resumed run continues without gap or duplicate."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends rows to a JSON-lines file.

    Args:
        path: the file; made with its first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; on disk when this returns, short of a power cut."""
        # JSON has no NaN and no infinity.
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain) + "\n")

    def position(self) -> int:
        """Bytes so far: what a checkpoint remembers."""
        return self.path.stat().st_size if self.path.exists() else 0

    def rewind(self, position: int) -> None:
        """Drop every row behind `position`: the steps after the checkpoint are done again."""
        if self.path.exists():
            os.truncate(self.path, position)
