"""Who watches a run. Callbacks see numbers; nothing here changes the mathematics."""

from __future__ import annotations

import sys
import time
from typing import Any


class Callback:
    """Hooks of the loop, all empty."""

    def on_start(self, step: int, max_steps: int | None) -> None:
        """Before the first step; `step` are done already, of `max_steps`, where the run ends in steps."""

    def on_step(self, step: int, loss: float) -> None:
        """After every optimiser step."""

    def on_metrics(self, row: dict[str, Any]) -> None:
        """With every row of `metrics.jsonl`."""

    def on_end(self) -> None:
        """After the last step, however the run ended."""


class Progress(Callback):
    """A bar with remaining steps and time on a terminal, a line now and then elsewhere.

    Args:
        seconds_between_lines: outside a terminal.
    """

    def __init__(self, seconds_between_lines: float = 10.0) -> None:
        self.seconds_between_lines = seconds_between_lines
        self.terminal = sys.stderr.isatty()
        self._last_line = 0.0
        self._bar: Any = None

    def on_start(self, step: int, max_steps: int | None) -> None:
        self.start_step = step
        self.max_steps = max_steps
        self.start = time.perf_counter()
        if not self.terminal:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = [TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}")]
        self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True))
        self._task = self._bar.add_task("training", total=max_steps, completed=step, facts="")
        self._bar.start()

    def on_step(self, step: int, loss: float) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def on_metrics(self, row: dict[str, Any]) -> None:
        facts = _facts(row)
        if self._bar is not None:
            if "validation_loss" in row:
                self._bar.console.print(f"step {row['step']}: {facts}")
            else:
                self._bar.update(self._task, facts=facts)
            return
        now = time.perf_counter()
        step, last = row["step"], row["step"] == self.max_steps
        if "validation_loss" in row or last or now - self._last_line >= self.seconds_between_lines:
            self._last_line = now
            of, left = "", ""
            if self.max_steps is not None:
                seconds = (now - self.start) / max(step - self.start_step, 1) * (self.max_steps - step)
                of, left = f"/{self.max_steps}", f"  {seconds:.0f} s left"
            print(f"step {step}{of}  {facts}{left}", file=sys.stderr, flush=True)

    def on_end(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def _facts(row: dict[str, Any]) -> str:
    shown = {"loss": "loss {:.4f}", "validation_loss": "validation loss {:.4f}", "tokens_per_second": "{:,.0f} tok/s",
             "mfu": "MFU {:.0%}"}  # fmt: skip
    return "  ".join(form.format(row[key]) for key, form in shown.items() if row.get(key) is not None)
