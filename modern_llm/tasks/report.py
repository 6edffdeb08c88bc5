"""A report on runs that are there already, whatever their tasks: one page, one Markdown table, one CSV file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import RunFolder
from modern_llm.reporting.record import RunRecord, find_runs

if TYPE_CHECKING:
    from modern_llm.reporting.comparison.compare import Comparison


_DEFAULTS = Defaults("task/report")


@dataclass(frozen=True)
class Report:
    """Set runs beside each other. Reads run records alone, and imports no torch.

    Args:
        runs: folders, searched for runs at any depth, and globs of such folders; reports are no runs.
        title: of the page; None: how many runs it tells of.

    Raises:
        ValueError: no run is found.
    """

    runs: list[str] = field(default_factory=lambda: ["outputs"])
    title: str | None = _DEFAULTS("title")
    objective_metric: ClassVar[str] = "runs"

    def __post_init__(self) -> None:
        found, _ = find_runs(self.runs, only_measured=True)
        require(bool(found), "task.runs", self.runs, f"no run is found from {Path.cwd()}",
                "Name folders of runs, folders above them, or globs such as 'outputs/2026-11-*'; a run is a folder "
                "with config.yaml beside sittings.jsonl or metrics.jsonl")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Write `report.html`, `report.md` and `runs.csv`. Returns how many runs there are, by status."""
        from modern_llm.reporting.comparison.compare import Comparison, counted
        from modern_llm.reporting.comparison.notices import notices

        found, empty = find_runs(self.runs, only_measured=True)
        remarks = [f"{pattern!r} led to no run" for pattern in empty] + _waiting_jobs(found)
        compared = Comparison([RunRecord.read(path) for path in found], labels(found), remarks=remarks)
        title = self.title or f"Report on {counted(len(found), 'run')}"
        note = f"{', '.join(self.runs)}; {time.strftime('%Y-%m-%d %H:%M:%S %z')}"
        written = write_comparison(folder.path, compared, title, note)
        metrics: dict[str, float] = {"runs": len(found)}
        for run in compared.runs:
            metrics[run.status] = metrics.get(run.status, 0) + 1
        paths = [str(path) for path in found]
        folder.write_result(self.objective_metric, metrics, notes=notices(compared), runs=paths)
        print(", ".join(f"{name} {number:.0f}" for name, number in metrics.items()))
        for what, path in written.items():
            print(f"{what + ':':<7}{path}")
        return metrics


def write_comparison(folder: Path, compared: Comparison, title: str, note: str) -> dict[str, Path]:
    """Write `report.html`, `report.md` and `runs.csv`; returns them by what they are."""
    from modern_llm.reporting.comparison.text import comparison_markdown, write_comparison_csv
    from modern_llm.reporting.pages.blocks import write_page
    from modern_llm.reporting.pages.comparison import comparison_page

    written = {
        "page": write_page(folder / "report.html", comparison_page(compared, title, note)),
        "table": folder / "report.md",
        "csv": write_comparison_csv(compared, folder / "runs.csv"),
    }
    written["table"].write_text(comparison_markdown(compared, title, note), encoding="utf-8", errors="replace")
    return written


def labels(folders: Sequence[Path]) -> list[str]:
    """What the runs are called: their folders, without what all of them begin with."""
    absolute = [folder.resolve() for folder in folders]
    above = os.path.commonpath([path.parent for path in absolute])
    return [path.relative_to(above).as_posix() for path in absolute]


def _waiting_jobs(found: Sequence[Path]) -> list[str]:
    """Sweeps with jobs that have left nothing yet."""
    remarks = []
    for sweep in dict.fromkeys(path.parent for path in found if (path.parent / "sweep.json").is_file()):
        try:
            jobs = len(json.loads((sweep / "sweep.json").read_text(encoding="utf-8"))["jobs"])
        except (ValueError, KeyError, TypeError):
            continue  # each run's own record is what is told
        waiting = sum(not (sweep / str(number)).is_dir() for number in range(jobs))
        if waiting:
            remarks.append(f"{sweep}: {waiting} of {jobs} jobs of this sweep have not run")
    return remarks
