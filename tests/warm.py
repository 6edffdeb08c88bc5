"""Forks commands from an interpreter that has imported everything: `launch.py` then starts in no time.

    python tests/warm.py FD FOLDER

From the file descriptor it reads folders, one a line. A folder holds `request.json`, with what is typed behind
`python`, the working directory, the environment, and where the command reads and writes. The command is in a session of
its own; beside it stands a process that writes its number to `pid` and how it ended, as `subprocess` says it, to
`status`.

Jobs that a command starts ask in the same way, by FOLDER's `requests`: what a command knows as its interpreter is
FOLDER's `python`, which stands for the forked job (`tests/warm_job.py`) and is any other script's real interpreter.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What the package imports when it is used.
HEAVY = ("torch._dynamo", "matplotlib.figure", "matplotlib.backends.backend_agg", "tokenizers", "transformers", "peft")

OPTIONAL = ("lm_eval",)  # packages without which a module cannot be imported, and that need not be there


def warm_up() -> None:
    import modern_llm

    for module in pkgutil.walk_packages(modern_llm.__path__, "modern_llm."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as missing:
            if missing.name not in OPTIONAL:
                raise
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def write(path: Path, number: int) -> None:
    """Whole, or not at all."""
    part = path.with_suffix(".part")
    part.write_text(str(number))
    part.replace(path)


def alive(pid: int) -> int | None:
    """A descriptor that can be read once a process has ended; None: it has."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def watch(folder: Path, asks: int | None) -> None:
    """Start a command; returns in its process, and leaves the one beside it when the command has ended. A job dies with
    the process that asks for it."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        write(folder / "pid", pid)
        if asks is not None:
            ends, asker = os.pidfd_open(pid), alive(asks)
            if asker is None or ends not in select.select([ends, asker], [], [])[0]:
                os.kill(pid, signal.SIGKILL)
        write(folder / "status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)


def become(request: dict[str, Any], interpreter: Path) -> None:
    """Everything that a command has of its own."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    # Commands and their jobs write into one file.
    writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, flags in enumerate((os.O_RDONLY, writing, writing)):
        opened = os.open(request["streams"][number], flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = request["typed"]
    if sys.platform == "linux":  # what stands for a job needs /proc and descriptors of processes
        sys.executable = str(interpreter)


def requests_of(commands: int, jobs: int) -> Iterator[Path]:
    """Folders, until no more commands can come."""
    rest = {commands: b"", jobs: b""}
    while True:
        for source in select.select([commands, jobs], [], [])[0]:
            read = os.read(source, 1 << 16)
            if source == commands and not read:
                return
            *lines, rest[source] = (rest[source] + read).split(b"\n")
            yield from (Path(line.decode()) for line in lines)


def serve(commands: int, top: Path) -> None:
    """Returns in the process of each command, and where no more are asked for."""
    jobs = os.open(top / "requests", os.O_RDWR)  # for writing too: it does not end when a job's asker has
    for folder in requests_of(commands, jobs):
        if os.fork() == 0:
            os.close(commands)
            os.close(jobs)
            request = json.loads((folder / "request.json").read_text())
            watch(folder, request.get("asks"))
            become(request, top / "python")
            return
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who watched a command is waited for by no one
    sys.path[0] = str(ROOT)
    warm_up()
    serve(int(sys.argv[1]), Path(sys.argv[2]))
    runpy.run_path(sys.argv[0], run_name="__main__")
