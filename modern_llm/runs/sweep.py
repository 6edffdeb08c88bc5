"""A sweep on disk: its jobs, which of them are done, and taking it up again."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from modern_llm.config.composing import hydra_overrides
from modern_llm.config.instantiate import ConfigError
from modern_llm.config.messages import FULL_ERROR, WANTS_EVERYTHING, in_words, is_mistake
from modern_llm.config.overrides import group_of, quoted
from modern_llm.config.records import read_record
from modern_llm.files import DamagedError, read_json, write_json, write_text
from modern_llm.locks import FolderInUseError, hold, holder
from modern_llm.reporting.record import RunRecord, config_flags, is_complete, job_status
from modern_llm.runs.checked import checked
from modern_llm.runs.folder import hold_run

# Ends that a person asked for: Ctrl-C and a scheduler's SIGTERM, as `launch.py` reports them.
_INTERRUPTED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}


class SweepInterrupted(BaseException):
    """A job was stopped by a signal, and the sweep or pipeline with it.

    Args:
        signal_number: the signal.
        folder: of the sweep or pipeline.
    """

    def __init__(self, signal_number: int, folder: Path) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number, self.checkpoint = signal_number, folder


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


@dataclass(frozen=True)
class Sweep:
    """A folder with one numbered folder per job.

    Attributes:
        folder: of the sweep; `sweep.json` in it lists the jobs.
        jobs: overrides of each job; its number is its place.
    """

    folder: Path
    jobs: list[list[str]]

    @classmethod
    def open(cls, folder: Path, multirun: Path, jobs: list[list[str]], resume: str | None) -> Sweep:
        """A new sweep, or the one that `resume` means.

        Args:
            folder: of a new sweep.
            multirun: where sweeps are kept.
            jobs: overrides of each job.
            resume: None; a sweep's folder; or `auto`: the newest one with the same jobs.

        Raises:
            ConfigError: `resume` names no sweep, one with other jobs, or one that is going; or a folder that is taken.
        """
        if resume == "auto":
            for record in sorted(multirun.glob("*/*/sweep.json"), key=lambda p: p.parent.as_posix(), reverse=True):
                try:
                    if jobs_of(record.parent) == jobs and holder(record.parent) is None:
                        hold(record.parent)
                        return cls(record.parent, jobs)
                except (DamagedError, FolderInUseError, OSError) as passed_over:
                    print(f"resume=auto passes over {record.parent}: {passed_over}", file=sys.stderr)
            print("resume=auto: no sweep with these jobs; starting a new one", file=sys.stderr)
        elif resume is not None:
            found = Path(resume).expanduser()
            if not (found / "sweep.json").is_file():
                raise ConfigError(f"resume={resume}: is not the folder of a sweep (no sweep.json in it).")
            try:
                recorded = jobs_of(found)
            except DamagedError as cause:
                raise ConfigError(f"resume={resume}: its sweep.json is damaged: {cause}. Start a new sweep.") from cause
            if recorded != jobs:
                raise ConfigError(
                    f"resume={resume}: that sweep has other jobs ({len(recorded)}, the first is "
                    f"{' '.join(recorded[0])!r}). Give the overrides that it was started with."
                )
            hold_run(found)
            return cls(found, jobs)
        # Where a person named the folder, it is that one or none; else a sweep of the same second has it.
        if (folder / "sweep.json").exists() and multirun not in folder.parents:
            raise ConfigError(f"{folder} holds a sweep already. Take it up again with resume={folder}.")
        try:
            folder = _made_alone(folder)
            hold(folder)
            write_json(folder / "sweep.json", {"jobs": jobs})
        except OSError as cause:
            raise ConfigError(
                f"paths.outputs: the sweep's folder {folder} cannot be made ({cause.strerror}). "
                "Give a folder that you may write to: paths.outputs=…"
            ) from cause
        return cls(folder, jobs)

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

    def run(
        self,
        launch: Callable[[Sequence[Sequence[str]], int], Any],
        max_batch_size: int | None,
        refused: Mapping[int, str] | None = None,
    ) -> list[str]:
        """Run what is not finished, keep job numbers, and write the table and the picture.

        Args:
            launch: runs jobs with consecutive numbers from the given one.
            max_batch_size: jobs launched at a time; None: all.
            refused: jobs that are not to be started.

        Returns:
            The status of every job.

        Raises:
            SweepInterrupted: a signal came; the table tells how far the sweep is.
            SystemExit: status 1, at the end, when a job failed.
        """
        from modern_llm.reporting.sweep_report import write_sweep_report

        unfinished = [n for n in range(len(self.jobs)) if not is_complete(self.folder / str(n))]
        pending = [n for n in unfinished if n not in (refused or {})]
        done = len(self.jobs) - len(unfinished)
        before = f", {done} finished before" if done else ""
        print(f"sweep: {len(self.jobs)} jobs in {self.folder}{before}", file=sys.stderr)
        try:
            for batch in _consecutive(pending, max_batch_size):
                launch([self.jobs[n] for n in batch], batch[0])
        finally:
            try:
                written = write_sweep_report(self.folder)
                print(written["table"].read_text(encoding="utf-8"))
                for what, path in written.items():
                    print(f"{what + ':':<10}{path}")
            except Exception as cause:  # the jobs' own records are what counts
                print(f"The sweep's table or page could not be made: {in_words(cause)}", file=sys.stderr)
        statuses = [job_status(self.folder / str(n)) for n in range(len(self.jobs))]
        if any(status != "finished" for status in statuses):
            failed = sum(status != "finished" for status in statuses)
            print(f"{failed} of {len(statuses)} jobs did not finish; the table says why.", file=sys.stderr)
            if not refused or len(refused) < failed:
                print("Run them again with the same command and resume=auto", file=sys.stderr)
            raise SystemExit(1)
        return statuses


def _consecutive(numbers: list[int], limit: int | None) -> list[list[int]]:
    """Numbers in runs without gaps, each at most `limit` long."""
    batches: list[list[int]] = []
    for number in numbers:
        if batches and number == batches[-1][-1] + 1 and (limit is None or len(batches[-1]) < limit):
            batches[-1].append(number)
        else:
            batches.append([number])
    return batches


def jobs_of(folder: Path) -> list[list[str]]:
    """Overrides of every job of a sweep.

    Raises:
        DamagedError: `sweep.json` is not what a sweep writes.
        FileNotFoundError: there is none.
    """
    content = read_json(folder / "sweep.json")
    jobs = content.get("jobs") if isinstance(content, dict) else None
    right = isinstance(jobs, list) and bool(jobs) and all(isinstance(job, list) for job in jobs)
    if not right or not all(isinstance(text, str) for job in jobs for text in job):  # type: ignore[union-attr]
        raise DamagedError("it lists no jobs")
    return jobs  # type: ignore[return-value]


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


def same_precision(overrides: Sequence[str], folder: Path, jobs: Mapping[int, Sequence[str]]) -> list[str]:
    """The override that gives a job the precision which `hardware.precision=auto` came to in a job before it on the
    same machine settings; empty where there is none, or where it was set.

    Args:
        overrides: of the job.
        folder: of the sweep.
        jobs: number -> overrides of the jobs before it.
    """
    own = [text for text in overrides if group_of(text) == "hardware"]
    if any("precision" in text for text in own):
        return []
    for number, job in jobs.items():
        if [text for text in job if group_of(text) == "hardware"] == own:
            with suppress(ConfigError):
                record = read_record(folder / str(number) / "config.yaml")
                precision = (record.get("hardware") or {}).get("precision")
                if precision in ("fp32", "bf16", "fp16"):
                    return [f"hardware.precision={precision}"]
    return []


def objective_of(folder: Path) -> float | None:
    """The final metric that a finished run is optimised by."""
    run = RunRecord.read(folder)
    value = run.metrics.get(str(run.result.get("objective_metric")))
    return float(value) if value is not None else None


def set_aside(folder: Path) -> Path:
    """Rename a run's folder to `<name>.before_<n>`, where what it made is kept. Returns the new name."""
    names = (folder.with_name(f"{folder.name}.before_{n}") for n in count(1))
    return folder.rename(next(name for name in names if not name.exists()))


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: a job that outlived a killed command would write into
    the folder in which the next one goes on."""
    set_parent_death_signal = 1  # prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def run_in_process(overrides: list[str], folder: Path, output: Path | None = None) -> int:
    """Run one job as a command of its own, resuming what its folder holds.

    Args:
        overrides: of the job.
        folder: of the job.
        output: file for what it prints; None: the terminal.

    Returns:
        Its exit status.

    Raises:
        SweepInterrupted: the job was stopped by a signal.
        ConfigError: another process is running the job.
    """
    if (who := holder(folder)) is not None:
        raise ConfigError(f"{folder}: is being run by {who}. Wait for its end, or stop it.")
    if output is None:
        print(f"\njob {folder.name}: {' '.join(overrides)}", file=sys.stderr, flush=True)
    resume = [f"resume={quoted(str(folder))}"] if (folder / "config.yaml").is_file() else []
    command = [sys.executable, sys.argv[0], *config_flags(sys.argv[1:]), *overrides, *hydra_overrides()]
    command += [*resume, f"hydra.run.dir={quoted(str(folder))}", "hydra.mode=RUN"]
    # This process has set the variable for itself; whether a child shows tracebacks is the person's wish.
    environment = {key: value for key, value in os.environ.items() if key != FULL_ERROR or WANTS_EVERYTHING}
    ended = _die_with_parent if sys.platform == "linux" else None
    with output.open("ab") if output else nullcontext() as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT if file else None, preexec_fn=ended, env=environment
        )

    def pass_on(number: int, frame: object) -> None:
        child.send_signal(number)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while True:
            try:
                status = child.wait()
                break
            except KeyboardInterrupt:
                continue  # the job got the same Ctrl-C and is writing its checkpoint
    finally:
        signal.signal(signal.SIGTERM, before)
    if status in _INTERRUPTED:
        raise SweepInterrupted(abs(status) % 128, folder.parent)
    if status != 0 and not (folder / "failure.txt").is_file() and holder(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        why = f"ended with exit status {status}; see its output"
        if output is not None:
            why = next(reversed(output.read_text(encoding="utf-8", errors="replace").strip().splitlines()), why)
        write_text(folder / "failure.txt", f"{why.removeprefix('Error: ')}\n")
    return status
