"""Runs as commands of their own: how one is started, told to stop, and what is noted of its end."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modern_llm.config.composing import hydra_overrides
from modern_llm.config.instantiate import ConfigError
from modern_llm.config.messages import FULL_ERROR, WANTS_EVERYTHING
from modern_llm.config.overrides import key_of, quoted
from modern_llm.config.plugins import named_plugins
from modern_llm.files import write_text
from modern_llm.locks import holder
from modern_llm.reporting.record import config_flags

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


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: a job that outlived a killed command would write into
    the folder in which the next one goes on."""
    set_parent_death_signal = 1  # prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def start(
    overrides: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None, **streams: Any
) -> subprocess.Popen[bytes]:
    """Start one run as a command of its own, which resumes what its folder holds.

    Args:
        overrides: of the run.
        folder: of the run.
        environment: on top of this command's.
        streams: as `subprocess.Popen` takes them.

    Raises:
        ConfigError: another process is running it.
    """
    if (who := holder(folder)) is not None:
        raise ConfigError(f"{folder}: is being run by {who}. Wait for its end, or stop it.")
    resume = [f"resume={quoted(str(folder))}"] if (folder / "config.yaml").is_file() else []
    program = ["-m", "modern_llm"] if Path(sys.argv[0]).name == "__main__.py" else [sys.argv[0]]
    plugins = named_plugins() if not any(key_of(override) == "plugins" for override in overrides) else []
    allowed = [f"plugins=[{','.join(plugins)}]"] if plugins else []
    command = [sys.executable, *program, *config_flags(sys.argv[1:]), *overrides, *allowed, *hydra_overrides()]
    command += [*resume, f"hydra.run.dir={quoted(str(folder))}", "hydra.mode=RUN"]
    # This process has set the variable for itself; whether a child shows tracebacks is the person's wish.
    own = {key: value for key, value in os.environ.items() if key != FULL_ERROR or WANTS_EVERYTHING}
    ended = _die_with_parent if sys.platform == "linux" else None
    return subprocess.Popen(command, preexec_fn=ended, env=own | dict(environment or {}), **streams)


def was_stopped(status: int) -> bool:
    """Whether an exit status says that a person or a scheduler ended the run."""
    return status in _INTERRUPTED


def note_end(status: int, folder: Path, output: Path | None = None, said: str | None = None) -> None:
    """Write down why a run failed where it did not do so itself.

    Args:
        status: its exit status.
        folder: of the run.
        output: file with what it printed; None: the terminal.
        said: the last that it said of its progress, where that is known apart from its results.
    """
    if status == 0 or was_stopped(status) or (folder / "failure.txt").is_file() or holder(folder) is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    why = f"ended with exit status {status}; see its output"
    if said:
        why = said
    elif output is not None:
        why = next(reversed(output.read_text(encoding="utf-8", errors="replace").strip().splitlines()), why)
    write_text(folder / "failure.txt", f"{why.removeprefix('Error: ')}\n")


def run_in_process(overrides: Sequence[str], folder: Path, output: Path | None = None) -> int:
    """Run one job as a command of its own and wait for its end.

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
    if output is None:
        print(f"\njob {folder.name}: {' '.join(overrides)}", file=sys.stderr, flush=True)
        child = start(overrides, folder)
    else:
        with output.open("ab") as file:
            child = start(overrides, folder, stdout=file, stderr=subprocess.STDOUT)

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
    if was_stopped(status):
        raise SweepInterrupted(abs(status) % 128, folder.parent)
    note_end(status, folder, output)
    return status
