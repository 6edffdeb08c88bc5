"""What a person sees of jobs that run side by side."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modern_llm.files import read_json
from modern_llm.reporting.metric_names import headline
from modern_llm.reporting.record import RunRecord
from modern_llm.reporting.tables import shown, visible


class SweepView:
    """On a terminal, a line for each job that runs, with the last thing that it said; elsewhere, everything that jobs
    say, each line behind the number of its job. Both tell how a job began and how it ended.

    Args:
        sweep: folder with `sweep.json` and a folder per job.
        quiet: where there is no terminal, only how jobs end is told.
    """

    def __init__(self, sweep: Path, quiet: bool = False) -> None:
        self.sweep, self.quiet = sweep, quiet
        self._lines: dict[int, tuple[str, str, float, str]] = {}  # number -> place, choices, start, last words
        self._lock = threading.Lock()
        self._live: Any = None

    def __enter__(self) -> SweepView:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(get_renderable=self._table, console=Console(stderr=True), refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def started(self, number: int, overrides: Sequence[str], place: str) -> None:
        """A job is about to start.

        Args:
            number: of the job.
            overrides: of the job.
            place: where it runs.
        """
        choices = " ".join(self._own(overrides))
        with self._lock:
            self._lines[number] = (place, choices, time.monotonic(), "")
        if self._live is None and not self.quiet:
            self._print(f"job {number} starts on {place}: {choices}")

    def said(self, number: int, line: str) -> None:
        """A job said something."""
        line = visible(line)
        with self._lock:
            if line.strip() and number in self._lines:
                self._lines[number] = (*self._lines[number][:3], line.strip())
        if self._live is None and not self.quiet:
            self._print(f"job {number} | {line}")

    def ended(self, number: int) -> None:
        """A job has ended; its record says how."""
        with self._lock:
            place, choices, start, _ = self._lines.pop(number)
        run = RunRecord.read(self.sweep / str(number))
        named = headline(run.result, run.metrics)[:2] if run.status == "finished" else []
        figures = "".join(f"  {name} {shown(run.metrics[name])}" for name in named)
        why = f": {run.why}" if run.why else ""
        if run.status == "failed":
            why += f" (all it said: {run.folder / 'output.txt'})"
        took = f"{time.monotonic() - start:.0f} s on {place}"
        self._print(f"job {number} {run.status}{why} ({took}): {choices}{figures}")

    def _own(self, overrides: Sequence[str]) -> list[str]:
        """What tells a job from the others."""
        try:
            known = read_json(self.sweep / "sweep.json")
        except FileNotFoundError:  # a sweep of Hydra's own sweeper
            return list(overrides)
        jobs, search = known["jobs"], known.get("search")
        if search is not None:
            return [text for text in overrides if text not in search["fixed"]]
        return [text for text in overrides if len(jobs) == 1 or not all(text in job for job in jobs)]

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(no_wrap=True, overflow="ellipsis")
        with self._lock:
            lines = sorted(self._lines.items())
        for number, (place, choices, _, words) in lines:
            table.add_row(f"job {number}", place, f"{choices}  {words}".strip())
        return table
