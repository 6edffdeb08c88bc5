"""A sweep on disk: its jobs, which of them are done, and taking it up again."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from modern_llm.config.instantiate import ConfigError
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.files import DamagedError, json_text, read_json, write_json, write_text
from modern_llm.locks import FolderInUseError, alone, hold, holder
from modern_llm.reporting.record import RunRecord, is_complete, job_status
from modern_llm.runs.checked import checked
from modern_llm.runs.commands import SweepInterrupted
from modern_llm.runs.folder import hold_run

SWEEP = "sweep.json"
# What runs jobs: it takes number and overrides of the next one when it has room, and tells the number of each that has
# ended before it takes another.
Launch = Callable[[Iterator[tuple[int, list[str]]], Callable[[int], None]], None]


class JobFailedError(RuntimeError):
    """A job of a sweep ended without a result.

    Args:
        number: of the job.
        folder: of the job.
    """

    def __init__(self, number: int, folder: Path) -> None:
        super().__init__(f"job {number} did not finish ({job_status(folder)}). Its record is in {folder}.")


def refused_jobs(jobs: Sequence[Sequence[str]], compose: Callable[[Sequence[str]], DictConfig]) -> dict[int, str]:
    """Jobs that could never run, and why: all are composed and built before the first one starts.

    Args:
        jobs: overrides of each.
        compose: makes the configuration of one.
    """
    refused = {}
    for number, job in enumerate(jobs):
        try:
            checked(compose(job), job)
        except Exception as cause:
            if not is_mistake(cause):
                raise
            refused[number] = in_words(cause, job)
    return refused


def refuse_job(folder: Path, why: str) -> int:
    """Note why a job is not started; a record that is there stays. Returns the exit status that it would have had."""
    if not (folder / "config.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "failure.txt", f"{why}\n")
    return 1


def note_failure(folder: Path, cause: Any) -> None:
    """Write down why a job failed where its own record does not say so.

    Args:
        folder: of the job.
        cause: what its launcher was told.
    """
    if not (folder / "failure.txt").is_file() and job_status(folder) != "finished":
        folder.mkdir(parents=True, exist_ok=True)
        why = in_words(cause) if isinstance(cause, BaseException) else str(cause)
        write_text(folder / "failure.txt", f"{why}\n")


@dataclass(frozen=True)
class Sweep:
    """A folder with one numbered folder per job.

    Attributes:
        folder: of the sweep; `sweep.json` in it lists the jobs.
        jobs: overrides of each job; its number is its place.
        search: what is searched for, where jobs are added as the search goes on; None: the jobs are all there.
    """

    folder: Path
    jobs: list[list[str]]
    search: dict[str, Any] | None = None

    @classmethod
    def open(
        cls,
        folder: Path,
        multirun: Path,
        jobs: list[list[str]],
        resume: str | None,
        search: dict[str, Any] | None = None,
    ) -> Sweep:
        """A new sweep, or the one that `resume` means.

        Args:
            folder: of a new sweep.
            multirun: where sweeps are kept.
            jobs: overrides of each job; of a new search, none.
            resume: None; a sweep's folder; or `auto`: the newest one with the same jobs, or the same search.
            search: what is searched for.

        Raises:
            ConfigError: `resume` names no sweep, one with other jobs, or one that is going; or a folder that is taken.
        """
        wanted = cls(folder, jobs, search)
        if resume == "auto":
            for record in sorted(multirun.glob(f"*/*/{SWEEP}"), key=lambda p: p.parent.as_posix(), reverse=True):
                try:
                    found = cls.read(record.parent)
                    if found.is_like(wanted) and holder(found.folder) is None:
                        hold(found.folder)
                        return found
                except (DamagedError, FolderInUseError, OSError) as passed_over:
                    print(f"resume=auto passes over {record.parent}: {passed_over}", file=sys.stderr)
            print("resume=auto: no sweep with these jobs; starting a new one", file=sys.stderr)
        elif resume is not None:
            place = Path(resume).expanduser()
            if not (place / SWEEP).is_file():
                raise ConfigError(f"resume={resume}: is not the folder of a sweep (no {SWEEP} in it).")
            try:
                found = cls.read(place)
            except DamagedError as cause:
                raise ConfigError(f"resume={resume}: its {SWEEP} is damaged: {cause}. Start a new sweep.") from cause
            if not found.is_like(wanted):
                raise ConfigError(
                    f"resume={resume}: that sweep has {found.told}. Give the overrides that it was started with."
                )
            hold_run(place)
            return found
        # Where a person named the folder, it is that one or none; else a sweep of the same second has it.
        if (folder / SWEEP).exists() and multirun not in folder.parents:
            raise ConfigError(f"{folder} holds a sweep already. Take it up again with resume={folder}.")
        try:
            folder = _made_alone(folder)
            hold(folder)
            made = cls(folder, list(jobs), search)
            made.write()
        except OSError as cause:
            raise ConfigError(
                f"paths.outputs: the sweep's folder {folder} cannot be made ({cause.strerror}). "
                "Give a folder that you may write to: paths.outputs=…"
            ) from cause
        return made

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """The sweep in a folder.

        Raises:
            DamagedError: `sweep.json` is not what a sweep writes.
            FileNotFoundError: there is none.
        """
        content = read_json(folder / SWEEP)
        jobs, search = (content.get("jobs"), content.get("search")) if isinstance(content, dict) else (None, None)
        right = isinstance(jobs, list) and all(isinstance(job, list) for job in jobs)
        if not right or not all(isinstance(text, str) for job in jobs for text in job):  # type: ignore[union-attr]
            raise DamagedError("it lists no jobs")
        if not isinstance(search, dict | None) or not (jobs or search):
            raise DamagedError("it lists no jobs")
        return cls(folder, jobs, search)  # type: ignore[arg-type]

    def write(self) -> None:
        """Note the jobs that there are."""
        search = {} if self.search is None else {"search": self.search}
        write_json(self.folder / SWEEP, search | {"jobs": self.jobs})

    def is_like(self, other: Sweep) -> bool:
        """Whether another sweep is for the same jobs, or searches for the same."""
        if self.search is not None or other.search is not None:
            return self.search == other.search
        return self.jobs == other.jobs

    @property
    def told(self) -> str:
        """Its jobs in words."""
        if self.search is not None:
            return f"another search ({', '.join(map(str, self.search.get('space', ())))})"
        return f"other jobs ({len(self.jobs)}, the first is {' '.join(self.jobs[0])!r})"

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Keep jobs that cannot be built from being started; the table says why.

        Args:
            reasons: number of a job -> what is wrong with it.

        Raises:
            ConfigError: no job can be built.
        """
        for number, why in reasons.items():
            if len(reasons) < len(self.jobs):
                own = " ".join(text for text in self.jobs[number] if not all(text in job for job in self.jobs))
                print(f"job {number} is refused ({own}): {why}", file=sys.stderr)
            refuse_job(self.folder / str(number), why)
        if len(reasons) == len(self.jobs):
            told = list(dict.fromkeys(reasons.values()))
            more = f" ({len(told) - 1} more kinds of mistakes are in the other jobs)" if len(told) > 1 else ""
            raise ConfigError(f"none of the {len(self.jobs)} jobs can run: {told[0]}{more}")

    def run(self, launch: Launch, refused: Mapping[int, str] | None = None) -> list[str]:
        """Run what is not finished, keep job numbers, and write the table and the picture.

        Args:
            launch: runs jobs.
            refused: jobs that are not to be started.

        Returns:
            The status of every job.

        Raises:
            SweepInterrupted: a signal came; the table tells how far the sweep is.
            SystemExit: status 1, at the end, when a job failed.
        """
        unfinished = [n for n in range(len(self.jobs)) if not is_complete(self.folder / str(n))]
        pending = [n for n in unfinished if n not in (refused or {})]
        done = len(self.jobs) - len(unfinished)
        before = f", {done} finished before" if done else ""
        print(f"sweep: {len(self.jobs)} jobs in {self.folder}{before}", file=sys.stderr)
        with self.reported():
            launch(((n, self.jobs[n]) for n in pending), lambda number: None)
        statuses = self.statuses()
        if any(status != "finished" for status in statuses):
            failed = sum(status != "finished" for status in statuses)
            print(f"{failed} of {len(statuses)} jobs did not finish; the table says why.", file=sys.stderr)
            if not refused or len(refused) < failed:
                print("Run them again with the same command and resume=auto", file=sys.stderr)
            raise SystemExit(1)
        return statuses

    def statuses(self) -> list[str]:
        """How every job stands."""
        return [job_status(self.folder / str(n)) for n in range(len(self.jobs))]

    @contextmanager
    def reported(self) -> Iterator[None]:
        """Write table, picture and page of what was run inside, however it ended.

        Raises:
            SweepInterrupted: Ctrl-C.
        """
        from modern_llm.reporting.sweep_report import write_sweep_report

        try:
            yield
        except KeyboardInterrupt:
            raise SweepInterrupted(signal.SIGINT, self.folder) from None
        finally:
            try:
                written = write_sweep_report(self.folder)
                print(written["table"].read_text(encoding="utf-8"))
                for what, path in written.items():
                    print(f"{what + ':':<13}{path}")
            except Exception as cause:  # the jobs' own records are what counts
                print(f"The sweep's table or page could not be made: {in_words(cause)}", file=sys.stderr)


def _made_alone(folder: Path) -> Path:
    """Make a sweep's folder; where another sweep of the same second has it, one of its own."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    names = (folder.with_name(f"{folder.name}_{n}") if n else folder for n in count())
    for name in names:
        with suppress(FileExistsError):
            name.mkdir()
            return name
        if not any(name.iterdir()) and holder(name) is None:  # made for this sweep by whoever named it
            return name
    raise AssertionError


def measured_once(folder: Path, hardware: Mapping[str, Any], measure: Callable[[], str]) -> str:
    """The precision of the jobs of a sweep that have the same `hardware`: the first one measures it. Two that measured
    could differ, and so would their results.

    Args:
        folder: of the sweep.
        hardware: settings of the job that asks.
        measure: gives the precision.
    """
    path, key = folder / "precision.json", json_text(hardware)
    with alone(path.with_suffix(".lock")):
        known: dict[str, str] = {}
        with suppress(FileNotFoundError, DamagedError):
            known = found if isinstance(found := read_json(path), dict) else {}
        if key not in known:
            write_json(path, known | {key: measure()})
            known = read_json(path)
        return known[key]


def objective_of(folder: Path) -> float | None:
    """The final metric that a finished run is optimised by."""
    run = RunRecord.read(folder)
    value = run.metrics.get(str(run.result.get("objective_metric")))
    return float(value) if value is not None else None


def set_aside(folder: Path) -> Path:
    """Rename a run's folder to `<name>.before_<n>`, where what it made is kept. Returns the new name."""
    names = (folder.with_name(f"{folder.name}.before_{n}") for n in count(1))
    return folder.rename(next(name for name in names if not name.exists()))
