"""From the command to the end of the first training step of the default, against `python -c "import torch"`.

The text is tokenised before: what is timed is every start but the first.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import figure, print_table

ROOT = Path(__file__).resolve().parents[1]


def seconds_to_first_step() -> float:
    """Until the first row of metrics is on disk; the run is then stopped."""
    with tempfile.TemporaryDirectory() as outputs:
        command = [sys.executable, str(ROOT / "launch.py"), f"paths.outputs={outputs}", "trainer.log_every=1"]
        start = time.perf_counter()
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not list(Path(outputs).glob("*/*/metrics.jsonl")):
            if run.poll() is not None:
                raise RuntimeError("the run ended before its first step")
            time.sleep(0.005)
        passed = time.perf_counter() - start
        run.kill()
        run.wait()
        return passed


def seconds_to_import_torch() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Both in turn, after one round that is not counted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ours, theirs = [], []
    for _ in range(rounds + 1):
        ours.append(seconds_to_first_step())
        theirs.append(seconds_to_import_torch())
    ours, theirs = ours[1:], theirs[1:]
    ratio = median(a / b for a, b in zip(ours, theirs, strict=True))
    rows = [["launch.py, to the first step", f"{median(ours):.2f}", f"{ratio:.2f} x"]]
    rows.append(["import torch", f"{median(theirs):.2f}", "1.00 x"])
    figure("start to first step", "s", median(ours), median(theirs), ratio, at_most=True)
    print_table("Start of the default", ["command", "seconds", "ratio"], rows)


if __name__ == "__main__":
    main()
