"""Runs that a command starts, in numbered folders, found again by their overrides; what has ended stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from modern_llm.config.instantiate import ConfigError
from modern_llm.experiment.contract import say
from modern_llm.files import DamagedError, read_json
from modern_llm.reporting.record import RunRecord, is_complete
from modern_llm.runs.sweep import Launch, Sweep

# What is done to the folder of a job, whose overrides it is given, before the job begins.
Prepare = Callable[[list[str], Path], None]


def noted(path: Path) -> dict[str, Any]:
    """What a command that starts runs has noted in its folder; empty where it has not yet.

    Raises:
        ConfigError: the file is damaged.
    """
    try:
        state = read_json(path)
    except FileNotFoundError:
        return {}
    except DamagedError as cause:
        raise ConfigError(f"{path}: is damaged: {cause}. Start anew; the runs stay.") from cause
    return state if isinstance(state, dict) else {}


class JobFolder:
    """Jobs in a folder of their own, as a sweep's.

    Args:
        folder: that holds a folder per job.
        launch: makes what starts them.
    """

    def __init__(self, folder: Path, launch: Callable[[Path], Launch]) -> None:
        self.folder, self._launch = folder, launch
        self.sweep = Sweep(folder, [])
        with suppress(FileNotFoundError):
            self.sweep = Sweep.read(folder)

    def run(
        self, jobs: Sequence[list[str]], clock: Clock | None = None, prepare: Prepare | None = None
    ) -> list[RunRecord]:
        """Run those that have not ended. One that fails is a result like any other; what was interrupted goes on, and
        what failed for another reason than its own numbers is tried again by each command.

        Args:
            jobs: overrides of each.
            clock: tells how long the rest takes.
            prepare: fills the folder of a job that has none yet.

        Raises:
            SweepInterrupted: a signal came.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        known = {tuple(job): number for number, job in enumerate(self.sweep.jobs)}
        for job in jobs:
            if tuple(job) not in known:
                known[tuple(job)] = len(self.sweep.jobs)
                self.sweep.jobs.append(list(job))
        self.sweep.write()
        numbers = [known[tuple(job)] for job in jobs]
        pending = [number for number in dict.fromkeys(numbers) if not self._has_ended(number)]
        if clock is not None:
            clock.begin([numbers.index(number) for number in pending])

        def each() -> Iterator[tuple[int, list[str]]]:
            for number in pending:
                if prepare is not None and not (self.folder / str(number)).exists():
                    prepare(self.sweep.jobs[number], self.folder / str(number))
                yield number, self.sweep.jobs[number]

        def ended(number: int) -> None:
            if clock is not None:
                clock.ended(numbers.index(number))

        if pending:
            self._launch(self.folder)(each(), ended)
        return [RunRecord.read(self.folder / str(number)) for number in numbers]

    def _has_ended(self, number: int) -> bool:
        folder = self.folder / str(number)
        return is_complete(folder) or RunRecord.read(folder).diverged


class Clock:
    """Tells how far a phase is, and how long the rest will take at the pace so far.

    Args:
        what: the phase.
        expected: seconds that each job is expected to take.
    """

    def __init__(self, what: str, expected: Sequence[float]) -> None:
        self.what, self.expected = what, list(expected)
        self.done = 0.0

    def begin(self, pending: Sequence[int]) -> None:
        """The phase begins; `pending`: places of the jobs that are still to be run."""
        self.left, self.start = {*pending}, time.monotonic()

    def ended(self, place: int) -> None:
        """A job has ended."""
        self.left.discard(place)
        self.done += self.expected[place]
        pace = (time.monotonic() - self.start) / self.done
        rest = sum(self.expected[n] for n in self.left) * pace
        count = len(self.expected)
        say(f"{self.what}: {count - len(self.left)} of {count} runs, about {in_minutes(rest)} left")


def in_minutes(seconds: float) -> str:
    """A time as a person says it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"
