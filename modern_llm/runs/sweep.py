"""A sweep on disk: its jobs, which of them are done, and taking it up again."""

from __future__ import annotations

import ctypes
import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from modern_llm.config.instantiate import ConfigError
from modern_llm.config.overrides import quoted
from modern_llm.reporting.record import job_status

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
            ConfigError: `resume` names no sweep, or one with other jobs; or a new folder that is taken.
        """
        if resume == "auto":
            same = [p.parent for p in multirun.glob("*/*/sweep.json") if json.loads(p.read_text())["jobs"] == jobs]
            if same:
                return cls(max(same, key=lambda p: p.as_posix()), jobs)
            print("resume=auto: no sweep with these jobs; starting a new one", file=sys.stderr)
        elif resume is not None:
            found = Path(resume).expanduser()
            if not (found / "sweep.json").is_file():
                raise ConfigError(f"resume={resume}: is not the folder of a sweep (no sweep.json in it).")
            recorded = json.loads((found / "sweep.json").read_text())["jobs"]
            if recorded != jobs:
                raise ConfigError(
                    f"resume={resume}: that sweep has other jobs ({len(recorded)}, the first is "
                    f"{' '.join(recorded[0])!r}). Give the overrides that it was started with."
                )
            return cls(found, jobs)
        if (folder / "sweep.json").exists():
            raise ConfigError(f"{folder} holds a sweep already. Take it up again with resume={folder}.")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.json").write_text(json.dumps({"jobs": jobs}, indent=1), encoding="utf-8")
        return cls(folder, jobs)

    def run(self, launch: Callable[[Sequence[Sequence[str]], int], Any], max_batch_size: int | None) -> list[str]:
        """Run what is not finished, keep job numbers, and write the table and the picture.

        Args:
            launch: runs jobs with consecutive numbers from the given one.
            max_batch_size: jobs launched at a time; None: all.

        Returns:
            The status of every job.

        Raises:
            SweepInterrupted: a signal came; the table tells how far the sweep is.
            SystemExit: status 1, at the end, when a job failed.
        """
        from modern_llm.reporting.sweep_report import write_sweep_report

        pending = [n for n in range(len(self.jobs)) if job_status(self.folder / str(n)) != "finished"]
        done = len(self.jobs) - len(pending)
        before = f", {done} finished before" if done else ""
        print(f"sweep: {len(self.jobs)} jobs in {self.folder}{before}", file=sys.stderr)
        try:
            for batch in _consecutive(pending, max_batch_size):
                launch([self.jobs[n] for n in batch], batch[0])
        finally:
            written = write_sweep_report(self.folder)
            print(written["table"].read_text(encoding="utf-8"))
            for what, path in written.items():
                print(f"{what + ':':<10}{path}")
        statuses = [job_status(self.folder / str(n)) for n in range(len(self.jobs))]
        if any(status != "finished" for status in statuses):
            failed = sum(status != "finished" for status in statuses)
            print(f"{failed} of {len(statuses)} jobs did not finish; the table says why.", file=sys.stderr)
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


def _forwarded_flags() -> list[str]:
    """Flags of this command line that decide what is composed."""
    flags, arguments = [], sys.argv[1:]
    for i, argument in enumerate(arguments):
        name = argument.split("=", 1)[0]
        if name in ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"):
            flags += [argument] if "=" in argument else arguments[i : i + 2]
    return flags


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
    """
    if output is None:
        print(f"\njob {folder.name}: {' '.join(overrides)}", file=sys.stderr, flush=True)
    resume = [f"resume={quoted(str(folder))}"] if (folder / "config.yaml").is_file() else []
    command = [sys.executable, sys.argv[0], *_forwarded_flags(), *overrides]
    command += [*resume, f"hydra.run.dir={quoted(str(folder))}", "hydra.mode=RUN"]
    ended = _die_with_parent if sys.platform == "linux" else None
    with output.open("ab") if output else nullcontext() as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT if file else None, preexec_fn=ended)

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
    if status != 0 and not (folder / "failure.txt").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        why = f"ended with exit status {status}; see its output"
        if output is not None:
            why = next(reversed(output.read_text(encoding="utf-8", errors="replace").strip().splitlines()), why)
        (folder / "failure.txt").write_text(f"{why}\n", encoding="utf-8")
    return status
