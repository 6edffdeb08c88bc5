"""The contract between the launcher and a task, and what every task is given. Imports no torch."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.files import json_text, write_json, write_text
from modern_llm.models.custom import FromScratch
from modern_llm.processes import world
from modern_llm.training.callbacks import Callback

_DEFAULTS = Defaults("paths/default")


@dataclass(frozen=True)
class Paths:
    """Where things are kept.

    Args:
        outputs: runs and sweeps.
        cache: tokenised corpora and trained tokenizers, shared by runs.
        mirror: local mirror in the hub's own layout, looked at first; null: none.
    """

    outputs: str = _DEFAULTS("outputs")
    cache: str = "~/.cache/modern_llm"
    mirror: str | None = None

    def __post_init__(self) -> None:
        require(self.mirror is None or Path(self.mirror).expanduser().is_dir(), "paths.mirror", self.mirror,
                "is no folder", "Give the root of the mirror, or null for none")  # fmt: skip

    @property
    def cache_folder(self) -> Path:
        """`cache` with ~ expanded."""
        return Path(self.cache).expanduser()


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run, in which the first of its processes writes.

    Args:
        path: the folder.
        record: the composed configuration, as it stands in `config.yaml`.
        watchers: who watches the training besides its own callbacks.
    """

    path: Path
    record: dict[str, Any]
    watchers: Sequence[Callback] = ()

    def write_json(self, name: str, content: Any) -> Path:
        """Write a JSON file in one go; NaN and infinities, which JSON does not have, become null.

        Raises:
            OSError: it cannot be written; what stood there stays.
        """
        if not world().is_first:
            return self.path / name
        return write_json(self.path / name, content)

    def write_lines(self, name: str, rows: list[dict[str, Any]]) -> Path:
        """Write a JSON-lines file in one go.

        Raises:
            OSError: it cannot be written; what stood there stays.
        """
        if not world().is_first:
            return self.path / name
        return write_text(self.path / name, "".join(json_text(row) + "\n" for row in rows))

    def write_result(
        self, objective_metric: str, metrics: dict[str, float], headline: Sequence[str] = (), **more: Any
    ) -> Path:
        """Write `result.json`: the figures are there from here on, and what fails behind it costs a page, not the run.

        Args:
            objective_metric: the one that a sweep optimises.
            metrics: final ones; those without a finite value are left out, because JSON has none.
            headline: names of the few that one came for; empty: all.
            more: what else reports read, see `write_run_report`.
        """
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        shown = [name for name in headline or metrics if name in finite]
        result = {"status": "finished", "metrics": finite, "objective_metric": objective_metric, "headline": shown}
        return self.write_json("result.json", result | more)


def tell_paths(written: Mapping[str, Path]) -> None:
    """Say where things were written."""
    for what, path in written.items():
        print(f"{what + ':':<12}{path}")


class Task(Protocol):
    """What a configuration's `task` builds."""

    @property
    def objective_metric(self) -> str: ...

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Do it all and return the final metrics; `objective_metric` names the one that a sweep optimises."""


def say(message: str) -> None:
    """Tell the person at the terminal how far the run is."""
    if world().is_first:
        print(message, file=sys.stderr, flush=True)


def progress_of(what: str) -> Callable[[int, int], None]:
    """Tells how far an evaluation is, now and then."""
    start = last = time.perf_counter()

    def tell(done: int, of: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last > 10 or (done == of and now - start > 10):
            last = now
            say(f"{what}: {done}/{of}, {(now - start) / done * (of - done):.0f} s left")

    return tell


def require_finished(key: str, path: str, task: str, *files: str) -> None:
    """Refuse a folder that is not of a finished run of a task.

    Args:
        key: that names the folder.
        path: the folder.
        task: which.
        files: what such a run leaves; none: it is told by its record alone.

    Raises:
        ValueError: with what the folder is instead.
    """
    from modern_llm.reporting.record import RunRecord

    folder = Path(path).expanduser()
    run = RunRecord.read(folder)
    settings = run.settings.get("task")
    target = str(settings.get("_target_", "")) if isinstance(settings, dict) else ""
    missing = [name for name in files if not (folder / name).is_file()]
    fault = ""
    if not folder.is_dir():
        fault = "there is no such folder"
    elif target and not target.startswith(f"modern_llm.tasks.{task}."):
        fault = f"it is a run of {target}"
    elif run.status != "finished":
        fault = f"it is {run.status}" if run.status != "not run" else "it is no run"
    elif missing:
        fault = f"it lacks {' and '.join(missing)}"
    require(not fault, key, path, f"holds no finished run of task={task}, because {fault}",
            f"Give the folder of a finished run of task={task}")  # fmt: skip


def require_pretrained(model: Any) -> None:
    """Refuse a model that is described and not trained yet.

    Raises:
        ValueError: with what to choose instead.
    """
    if isinstance(model, FromScratch):
        raise ValueError(
            "model: this task needs a trained model, and the chosen one is a decoder with random weights. Choose "
            "model=gpt2, distilgpt2, smollm2_135m, tinyllama, t5_small or flan_t5_small; or model=from_run with "
            "model.path=<folder of a run> for a decoder that you have trained."
        )
