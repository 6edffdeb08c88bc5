"""Several jobs of a sweep at a time: each in a process of its own, on a device of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path

from modern_llm.checks import require
from modern_llm.runs.commands import SweepInterrupted, note_end, start
from modern_llm.runs.sweep_view import SweepView

VISIBLE = "CUDA_VISIBLE_DEVICES"
# What the libraries that compute on CPUs read; the second is that of the tokenizers.
_THREADS = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Place:
    """Where one job at a time runs.

    Attributes:
        name: as a person is told it.
        environment: of its jobs, on top of the sweep's.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)


def visible_gpus() -> list[str]:
    """The GPUs that torch can use here, each by the name that CUDA_VISIBLE_DEVICES has for it."""
    import torch

    return names_of_gpus(torch.cuda.device_count(), os.environ.get(VISIBLE))


def names_of_gpus(number: int, visible: str | None) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may call each GPU.

    Args:
        number: of those that can be used.
        visible: the variable as it stands; None: it is not set.
    """
    names = map(str, count()) if visible is None else (name.strip() for name in visible.split(","))
    return list(islice(names, number))


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def places(jobs: int | None, gpus: Sequence[str], cores: int, environment: Mapping[str, str]) -> list[Place]:
    """The places of a machine. Threads are divided among them, unless the environment says how many.

    Args:
        jobs: how many; None: one for each GPU, and one where there is none. With more than GPUs, they are shared.
        gpus: by the names that CUDA_VISIBLE_DEVICES has for them.
        cores: CPU cores to be divided.
        environment: of the sweep.

    Raises:
        ValueError: no place.
    """
    require(jobs is None or jobs >= 1, "hydra.launcher.jobs", jobs, "must be at least 1",
            "Raise it, or use null for one job a GPU")  # fmt: skip
    number = jobs or max(len(gpus), 1)
    threads = {name: str(max(cores // number, 1)) for name in _THREADS if name not in environment}
    if not gpus:
        return [Place("CPU", threads) for _ in range(number)]
    return [Place(f"GPU {gpu}", threads | {VISIBLE: gpu}) for gpu in (gpus[i % len(gpus)] for i in range(number))]


class _Job:
    """A job that runs: its output goes to `output.txt` of its folder, and what it says of its progress to the view."""

    def __init__(self, number: int, overrides: Sequence[str], folder: Path, place: Place, view: SweepView) -> None:
        self.number, self.folder, self.place = number, folder, place
        self.output = folder / "output.txt"
        self.told: int | None = None
        self.said = ""
        folder.mkdir(parents=True, exist_ok=True)
        # In a group of its own, a job gets each Ctrl-C once, from the sweep; a second one would cost the checkpoint.
        with self.output.open("ab") as file:
            self.process = start(
                overrides, folder, place.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE,
                process_group=0 if os.name == "posix" else None,
            )  # fmt: skip
        self.reader = threading.Thread(target=self._read, args=(view,), daemon=True)
        self.reader.start()

    def _read(self, view: SweepView) -> None:
        assert self.process.stderr is not None
        with self.output.open("ab", buffering=0) as file:
            for line in self.process.stderr:
                file.write(line)
                text = line.decode(errors="replace").rstrip()
                self.said = text or self.said
                view.said(self.number, text)

    def tell(self, number: int) -> None:
        """Pass a signal on: Ctrl-C as a terminal does, to all processes of the job; SIGTERM as a scheduler does."""
        self.told = number
        if number == signal.SIGINT and os.name == "posix" and self.process.poll() is None:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self) -> None:
        """Note how it ended."""
        # What a job leaves running, such as a logger's service, may hold the pipe open.
        self.reader.join(timeout=2)
        note_end(self.process.wait(), self.folder, self.output, self.said)


def run_side_by_side(
    jobs: Iterable[tuple[int, Sequence[str]]],
    where: Sequence[Place],
    sweep: Path,
    ended: Callable[[int], None] = lambda number: None,
    quiet: bool = False,
) -> None:
    """Run jobs, as many at a time as there are places. The next one is asked for when a place is free.

    Args:
        jobs: number and overrides of each.
        where: the places.
        sweep: folder with a folder per job.
        ended: told the number of each job that has ended, before the next one is asked for.
        quiet: what jobs say goes to their files alone.

    Raises:
        SweepInterrupted: a signal came; all jobs got it and have ended.
        ConfigError: another process is running a job.
    """
    free, running, waiting = deque(where), list[_Job](), iter(jobs)
    stop: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        stop.append(number)
        for job in running:
            job.tell(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with SweepView(sweep, quiet) as view:
            try:
                while True:
                    while free and not stop and (entry := next(waiting, None)) is not None:
                        number, overrides = entry
                        place = free.popleft()
                        view.started(number, overrides, place.name)
                        running.append(_Job(number, overrides, sweep / str(number), place, view))
                    for job in running:
                        if stop and job.told is None:  # it was being started when the signal came
                            job.tell(stop[-1])
                    if not running:
                        break
                    done = [job for job in running if job.process.poll() is not None]
                    for job in done:
                        running.remove(job)
                        free.append(job.place)
                        job.end()
                        view.ended(job.number)
                        ended(job.number)
                    if not done:
                        time.sleep(_SECONDS_BETWEEN_LOOKS)
            except BaseException:
                for job in running:
                    job.tell(signal.SIGTERM)
                for job in running:
                    job.process.wait()
                raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop:
        raise SweepInterrupted(stop[0], sweep)
