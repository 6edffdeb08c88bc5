"""Running the project's own commands."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A model of a few thousand parameters on two short files: a run takes seconds.
SMALL = [
    "experiment=quick",
    "task=text",
    "task/tokenizer=bytes",
    "hardware=cpu",
    "hardware.precision=fp32",
    "hardware.num_threads=1",
    "model.d_model=32",
    "model.max_seq_len=32",
    "task.samples.max_new_tokens=5",
]
# What differs from run to run though the run is the same.
CLOCKS = ("seconds", "draw_seconds", "mark_seconds", "tokens_per_second", "peak_memory_gb", "mfu")


class Command:
    """`python launch.py …`, going on in a process of its own.

    Args:
        words: what stands behind `launch.py`.
        program: what is run in its place.
        cwd: where it is typed.
        env: environment beside that of the tests.
        stdin: what it reads.
    """

    def __init__(
        self,
        *words: str,
        program: Path = ROOT / "launch.py",
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
        stdin: str = "",
    ) -> None:
        server, top = _server()
        self._folder = top / str(next(_NUMBERS))
        self._folder.mkdir()
        environment = {**os.environ, **(env or {})}
        streams = [str(self._folder / name) for name in ("stdin", "stdout", "stderr")]
        typed = [str(program), *words]
        request = {"typed": typed, "cwd": str(cwd), "env": environment, "streams": streams}
        (self._folder / "request.json").write_text(json.dumps(request))
        (self._folder / "stdin").write_text(stdin)
        assert server.stdin is not None
        server.stdin.write(f"{self._folder}\n")
        server.stdin.flush()
        pid = self._folder / "pid"
        wait_for(pid.is_file, lambda: server.poll() is None)
        self.pid = int(pid.read_text())

    @property
    def returncode(self) -> int | None:
        """As `subprocess` gives it; None while it goes on."""
        status = self._folder / "status"
        return int(status.read_text()) if status.is_file() else None

    def _read(self, name: str) -> str:
        path = self._folder / name
        return path.read_bytes().decode(errors="replace") if path.is_file() else ""

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._read("stdout")

    @property
    def stderr(self) -> str:
        """What it has said so far."""
        return self._read("stderr")

    def send(self, how: signal.Signals) -> None:
        """A signal to the command alone."""
        os.kill(self.pid, how)

    def wait_until(self, holds: Callable[[], bool]) -> None:
        """Until something holds, while it goes on."""
        wait_for(holds, lambda: self.returncode is None, lambda: self.stderr[-3000:])

    def wait(self, timeout: float = 300) -> Command:
        """Until it has ended; after so many seconds it is killed and the test fails."""
        deadline = time.monotonic() + timeout
        while self.returncode is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"not done in {timeout} s: {self.stderr[-3000:]}")
            time.sleep(0.005)
        return self


_NUMBERS = itertools.count()


@cache
def _server() -> tuple[subprocess.Popen[str], Path]:
    """What forks the commands, and the folder where it finds them; one for each process that tests."""
    top = Path(tempfile.mkdtemp(prefix="commands_"))
    os.mkfifo(top / "requests")
    known = {"launch": str(ROOT / "launch.py"), "path": os.environ.get("PYTHONPATH")}
    (top / "server.json").write_text(json.dumps(known))
    job = (ROOT / "tests" / "warm_job.py").read_text()
    (top / "python").write_text(f"#!{sys.executable} -IS\n{job}")
    (top / "python").chmod(0o755)
    read, write = os.pipe()
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "warm.py"), str(read), str(top)],
        pass_fds=[read],
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    os.close(read)
    server.stdin = os.fdopen(write, "w")

    def end() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(10)
        shutil.rmtree(top, ignore_errors=True)

    atexit.register(end)
    return server, top


def launch(*words: str, timeout: float = 300, **more: Any) -> Command:
    """A command that has ended: `returncode`, `stdout`, `stderr`."""
    return Command(*words, **more).wait(timeout)


def launch_afresh(
    *words: str, flags: tuple[str, ...] = (), timeout: float = 120, **more: Any
) -> subprocess.CompletedProcess[str]:
    """A command in an interpreter of its own, for what depends on how it starts; what `subprocess.run` takes."""
    command = [sys.executable, *flags, str(ROOT / "launch.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **{"cwd": ROOT, **more})


def with_path(*folders: Path) -> dict[str, str]:
    """The environment of a command that finds the package wherever it is started."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*folders, ROOT]))}


class Workplace:
    """A folder with text, outputs and cache of its own.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.outputs = folder, folder / "outputs"
        text = "\n".join(f"{i} times {i} is {i * i}, and line {i} is done." for i in range(400))
        (folder / "text.txt").write_text(text)

    def words(self, *overrides: str) -> list[str]:
        """What is typed behind `launch.py`."""
        own = [f"task.data.train=[{self.folder}/text.txt]", f"paths.outputs={self.outputs}"]
        flags = [o for o in overrides if o.startswith("-")]
        return [*flags, *SMALL, *own, f"paths.cache={self.folder}/cache", *(o for o in overrides if o not in flags)]

    def start(self, *overrides: str) -> Command:
        return Command(*self.words(*overrides), cwd=self.folder)

    def run(self, *overrides: str, check: bool = True) -> Command:
        done = self.start(*overrides).wait()
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    def stop_at(self, step: int, how: signal.Signals, *overrides: str) -> tuple[Command, Path]:
        """Start a run and send it a signal once its metrics have reached a step: how it ended, and its folder."""
        run = self.start(*overrides)
        found: list[Path] = []

        def far_enough() -> bool:
            logs = [p for p in self.outputs.glob("*/*/metrics.jsonl") if not (p.parent / "result.json").exists()]
            found[:] = sorted(logs, key=lambda p: p.stat().st_mtime)
            return bool(found) and any(row["step"] >= step for row in read_rows(found[-1].parent))

        run.wait_until(far_enough)
        run.send(how)
        return run.wait(120), found[-1].parent

    def only_run(self) -> Path:
        (record,) = self.outputs.glob("*/*/config.yaml")
        return record.parent


def free_port() -> int:
    """On this machine, a moment ago."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def wait_for(holds: Callable[[], bool], goes: Callable[[], bool], said: Callable[[], str] = str) -> None:
    """Until something holds, while a process goes on; `said` tells why it did not."""
    deadline = time.monotonic() + 120
    while not holds():
        assert goes() or holds(), said()
        assert time.monotonic() < deadline, f"it never got that far: {said()}"
        time.sleep(0.002)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Whole rows of metrics.jsonl, clocks left out."""
    text = (folder / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def final_weights(folder: Path) -> bytes:
    """The newest checkpoint's weights, byte for byte."""
    newest = max((folder / "checkpoints").glob("step_*"))
    return (newest / "model.safetensors").read_bytes()


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())
