"""Running the project's own commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# A model of a few thousand parameters on two short files: a run takes seconds, most of them for importing torch.
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
CLOCKS = ("seconds", "tokens_per_second", "peak_memory_gb", "mfu")


class Workplace:
    """A folder with text, outputs and cache of its own.

    Args:
        folder: empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.outputs = folder, folder / "outputs"
        text = "\n".join(f"{i} times {i} is {i * i}, and line {i} is done." for i in range(400))
        (folder / "text.txt").write_text(text)

    def command(self, *overrides: str) -> list[str]:
        own = [f"task.data.train=[{self.folder}/text.txt]", f"paths.outputs={self.outputs}"]
        flags = [o for o in overrides if o.startswith("-")]
        keys = [*SMALL, *own, f"paths.cache={self.folder}/cache", *(o for o in overrides if o not in flags)]
        return [sys.executable, str(ROOT / "launch.py"), *flags, *keys]

    def environment(self) -> dict[str, str]:
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    def run(self, *overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*overrides),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.environment(),
            timeout=300,
        )
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    def stop_at(self, step: int, how: signal.Signals, *overrides: str) -> tuple[int, str, Path]:
        """Start a run and send it a signal once its metrics have reached a step: exit status, stderr, folder."""
        run = subprocess.Popen(
            self.command(*overrides),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=self.folder,
            env=self.environment(),
        )
        found: list[Path] = []

        def far_enough() -> bool:
            logs = [p for p in self.outputs.glob("*/*/metrics.jsonl") if not (p.parent / "result.json").exists()]
            found[:] = sorted(logs, key=lambda p: p.stat().st_mtime)
            return bool(found) and any(row["step"] >= step for row in read_rows(found[-1].parent))

        wait_for(far_enough, run)
        run.send_signal(how)
        stderr = run.communicate(timeout=120)[1]
        return run.returncode, stderr, found[-1].parent

    def only_run(self) -> Path:
        (record,) = self.outputs.glob("*/*/config.yaml")
        return record.parent


def wait_for(holds: Callable[[], bool], run: subprocess.Popen[str]) -> None:
    """Until something holds, while a run goes on."""
    deadline = time.monotonic() + 120
    while not holds():
        assert run.poll() is None, run.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "the run never got that far"
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
