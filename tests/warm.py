"""Forks commands from an interpreter that has imported everything: `launch.py` then starts in no time.

    python tests/warm.py FD

From the file descriptor it reads folders, one a line. A folder holds `request.json`, with the arguments of `launch.py`,
the working directory and the environment, and what the command reads as `stdin`. The command, in a session of its own,
writes `stdout` and `stderr` there; beside it stands a process that writes its number to `pid` and how it ended, as
`subprocess` says it, to `status`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import sys
from pathlib import Path

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


def watch(folder: Path) -> None:
    """Start a command; returns in its process, and leaves the one beside it when the command has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        write(folder / "pid", pid)
        write(folder / "status", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)


def become(folder: Path) -> None:
    """Everything that a command has of its own."""
    request = json.loads((folder / "request.json").read_text())
    os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    writing = os.O_WRONLY | os.O_CREAT
    for number, (name, flags) in enumerate((("stdin", os.O_RDONLY), ("stdout", writing), ("stderr", writing))):
        opened = os.open(folder / name, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = [str(ROOT / "launch.py"), *request["words"]]


def serve(requests: int) -> None:
    """Returns in the process of each command, and where no more are asked for."""
    with os.fdopen(requests) as lines:
        for line in lines:
            if os.fork() == 0:
                folder = Path(line.rstrip("\n"))
                watch(folder)
                become(folder)
                return
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who watched a command is waited for by no one
    sys.path[0] = str(ROOT)
    warm_up()
    serve(int(sys.argv[1]))
    runpy.run_path(sys.argv[0], run_name="__main__")
