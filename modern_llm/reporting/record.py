"""What a run leaves on disk, read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: of the run.
        config: its configuration, as `config.yaml` says it.
        rows: of `metrics.jsonl`.
        result: of `result.json`; empty while the run is not finished.
        sittings: of `sittings.jsonl`: when, by which command, with which code and packages.
    """

    folder: Path
    config: str
    rows: list[dict[str, Any]]
    result: dict[str, Any]
    sittings: list[dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record in a folder; what is not there is empty."""

        def text(name: str) -> str:
            path = folder / name
            return path.read_text(encoding="utf-8") if path.is_file() else ""

        return cls(
            folder,
            text("config.yaml"),
            [json.loads(line) for line in text("metrics.jsonl").splitlines()],
            json.loads(text("result.json") or "{}"),
            [json.loads(line) for line in text("sittings.jsonl").splitlines()],
        )

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric over the run."""
        points = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return [step for step, _ in points], [value for _, value in points]


def job_status(folder: Path) -> str:
    """`finished`, `failed: <why>`, `interrupted` or `not run`."""
    if (folder / "failure.txt").is_file():
        return "failed: " + (folder / "failure.txt").read_text(encoding="utf-8").splitlines()[0]
    if (folder / "result.json").is_file():
        return "finished"
    return "interrupted" if (folder / "config.yaml").is_file() else "not run"
