"""What every benchmark shares: which machine this is, fair timing of rivals, peak memory, and the table."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from modern_llm.training.runtime import peak_resident_bytes


def machine() -> str:
    """One line: processor or GPU, threads, and the versions that decide speed."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        device = f"{models[0] if models else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{device}; {torch.get_num_threads()} threads; {versions}"


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, the GPU's queue included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleave(rivals: dict[str, Callable[[], object]], rounds: int = 5, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each rival, timed A B A B: a machine that slows down slows everybody.

    Args:
        rivals: name -> what is timed.
        rounds: timed calls of each.
        warm_up: calls of each before, not timed.
    """
    for _ in range(warm_up):
        for run in rivals.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, run in rivals.items():
            times[name].append(seconds(run))
    return {name: median(values) for name, values in times.items()}


def peak_memory_mib() -> float:
    """Most memory that this process ever held, in MiB: on the GPU where there is one, else resident in RAM."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_resident_bytes() / 2**20


def in_own_process(*arguments: str) -> str:
    """Run the calling script again with `arguments` and return the last line it prints: a peak of memory can only be
    measured in a process that did nothing else."""
    command = [sys.executable, sys.argv[0], *arguments]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return result.stdout.strip().splitlines()[-1]


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A Markdown table below its title and the machine; numbers to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [":" + "-" * (widths[0] - 1)] + ["-" * (width - 1) + ":" for width in widths[1:]]
    print(f"\n### {title}\n\n{machine()}\n")
    print("\n".join([line(cells[0]), line(rule), *map(line, cells[1:])]))


FIGURES = "MODERN_LLM_FIGURES"  # the environment variable that names the file of figures


def figure(name: str, unit: str, ours: float, theirs: float, ratio: float, at_most: bool = False) -> None:
    """Hand one figure to `benchmarks/all.py`, where that started this script: a line of JSON in the file it names.

    Args:
        name: of the figure, words between commas.
        unit: of both sides.
        ours, theirs: what was measured.
        ratio: of both sides, as the goal is stated.
        at_most: the goal is a bound from above, as for memory; else from below.
    """
    path = os.environ.get(FIGURES)
    if path:
        row = {"name": name, "unit": unit, "ours": ours, "theirs": theirs, "ratio": ratio, "at_most": at_most}
        with Path(path).open("a") as file:
            file.write(json.dumps(row) + "\n")


class Runs:
    """Runs that are done, a line of JSON each: a campaign that was stopped goes on where it stood.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, key: dict[str, Any]) -> dict[str, Any] | None:
        """The run with these settings, or None."""
        return next((row for row in self.rows if all(row.get(k) == v for k, v in key.items())), None)

    def add(self, row: dict[str, Any]) -> None:
        """Keep a run."""
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
