"""Does a run that is killed and resumed end as one that was left alone? Bitwise, wherever it was killed?

    python benchmarks/kills.py --kills 100

Kills commands in named phases, with SIGKILL, SIGINT and SIGTERM, resumes them until they end, and compares weights and
rows of metrics with those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from modern_llm.reporting.record import is_complete

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
# What differs between two runs that are the same.
CLOCKS = ("seconds", "tokens_per_second", "peak_memory_gb", "mfu")
_MACHINE = ["hardware=cpu", "hardware.precision=fp32", "hardware.num_threads=1", "paths.mirror=null"]
_LENGTH = ["trainer.max_steps=60", "trainer.save_every=4", "trainer.eval_every=15", "trainer.log_every=2"]
_TEXT = ["task=text", "task.data.train=[{text}]", "task/tokenizer=bytes", "model.d_model=32", "model.n_layers=2",
         "model.n_heads=2", "model.max_seq_len=32", "model.dropout=0.1", "trainer.batch_size=4",
         "task.samples.max_new_tokens=5"]  # fmt: skip
_BASE = ["model=from_run", "model.path={base}", "task.max_tokens=96", "trainer.batch_size=4",
         "task.samples.max_new_tokens=5", "task.max_train_examples=64", "task.max_evaluation_examples=16"]  # fmt: skip
_STAGE = "trainer.max_steps=8,trainer.batch_size=4,trainer.eval_every=4,trainer.save_every=2,task.max_tokens=96"


def _stage(*overrides: str) -> str:
    return "[" + ",".join(f"'{text}'" for text in (*overrides, *_STAGE.split(","))) + "]"


# Name -> its share of the kills, and its command.
SUBJECTS: dict[str, tuple[int, list[str]]] = {
    "sinks": (24, [*_TEXT, *_LENGTH, "model.use_attention_sinks=true", "model/gqa=mqa"]),
    "experts": (24, [*_TEXT, *_LENGTH, "model/moe=top1of4", "trainer/optimizer=adamw"]),
    "LoRA": (20, ["task=sft", "task/data=arithmetic_instructions", *_BASE, *_LENGTH, "model/lora=on"]),
    "DPO": (20, ["task=dpo", "task/data=arithmetic_preferences", *_BASE, *_LENGTH, "model/lora=off"]),
    "sweep": (7, ["-m", *_TEXT, *_LENGTH, "trainer.max_steps=30", "seed=1,2"]),
    "pipeline": (
        5,
        [
            "experiment=pipeline_smoke", "task.stages=[base,sft,dpo]", "task.measures.perplexity_tokens=512",
            "task.measures.max_new_tokens=4", "task.measures.duels=2", "task.measures.max_conversations=4",
            "task.measures.max_pairs=4",
            "task.base=['task=python_docs','task/tokenizer=bytes','trainer.max_steps=8','trainer.save_every=2',"
            "'trainer.eval_every=4','task.samples.max_new_tokens=5','task.evaluation.tokens_in_training=512',"
            "'task.data.validation_percent=1']",
            f"task.sft={_stage('task/data=arithmetic_instructions')}",
            f"task.dpo={_stage('task/data=arithmetic_preferences')}",
        ],
    ),
}  # fmt: skip


def _as_in_a_terminal() -> None:
    """Whatever a shell starts in the background ignores Ctrl-C, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass(frozen=True)
class Place:
    """Where one command runs.

    Attributes:
        folder: of its own, with outputs, cache and what it prints.
        command: the whole command.
    """

    folder: Path
    command: list[str]

    @property
    def outputs(self) -> Path:
        return self.folder / "outputs"

    @property
    def printed(self) -> str:
        """What it has printed since it was started last."""
        log = self.folder / "printed.txt"
        return log.read_text(errors="replace") if log.is_file() else ""

    def start(self, *more: str) -> subprocess.Popen[bytes]:
        with (self.folder / "printed.txt").open("wb") as log:
            return subprocess.Popen(
                [*self.command, *more],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=_as_in_a_terminal,
            )

    def any(self, pattern: str) -> list[Path]:
        """Files and folders of a name, at any depth, in outputs that change meanwhile."""
        walked = os.walk(self.outputs)  # which passes over a folder that is gone
        return [
            Path(above, name) for above, folders, files in walked for name in fnmatch.filter(folders + files, pattern)
        ]


def _rows(place: Place) -> int:
    return sum(path.read_bytes().count(b"\n") for path in place.any("metrics.jsonl") if path.is_file())


def _is_measured(place: Place) -> bool:
    told = ("evaluating", "measuring", "evaluation", "validation loss")
    return _rows(place) > 4 and any(word in place.printed for word in told)


# Phase -> whether a command is in it.
PHASES: dict[str, Callable[[Place], bool]] = {
    "start": lambda place: bool(place.any("*")),
    "tokenising": lambda place: "tokenising" in place.printed or bool(place.any("sittings.jsonl")),
    "step": lambda place: _rows(place) > 12,
    "checkpoint": lambda place: bool(place.any("step_*.part")),
    "evaluation": _is_measured,
    "report": lambda place: bool(place.any("result.json")),
}


def make_place(folder: Path, subject: str, base: Path) -> Place:
    """A place for a subject's command."""
    folder.mkdir(parents=True)
    filled = [text.format(text=base.parent / "text.txt", base=base) if "{" in text else text
              for text in SUBJECTS[subject][1]]  # fmt: skip
    own = [f"paths.outputs={folder}/outputs", f"paths.cache={folder}/cache"]
    return Place(folder, [sys.executable, str(ROOT / "launch.py"), *filled, *_MACHINE, *own])


def make_base(folder: Path) -> Path:
    """The text and the run that the subjects build upon."""
    lines = (f"{i} times {i} is {i * i}, and line {i} is done." for i in range(400))
    (folder / "text.txt").write_text("\n".join(lines))
    base = folder / "base"
    text = [text.format(text=folder / "text.txt") for text in _TEXT]
    own = ["trainer.max_steps=20", "model.max_seq_len=128", f"hydra.run.dir={base}", f"paths.cache={folder}/base_cache"]
    command = [sys.executable, str(ROOT / "launch.py"), *text, *_MACHINE, *own]
    subprocess.run(command, check=True, capture_output=True)
    return base


def outcome(place: Place) -> dict[str, tuple[bytes, list[dict[str, float]]]]:
    """Of each training of a command, its last weights and its rows: what must be the same."""
    roots = {path.parent for name in ("sweep.json", "pipeline.json") for path in place.any(name)}
    roots = roots or {path.parent for path in place.outputs.glob("*/*/result.json")}
    root = max(roots, key=lambda path: path.as_posix())
    found = {}
    for log in sorted(root.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if key not in CLOCKS} for row in rows]
        newest = max((log.parent / "checkpoints").glob("step_????????"))
        found[log.parent.relative_to(root).as_posix()] = ((newest / "model.safetensors").read_bytes(), rows)
    return found


def kill_and_resume(place: Place, phase: str, how: signal.Signals, wait: float) -> tuple[bool, int]:
    """Kill a command in a phase, and resume it until it ends.

    Returns:
        Whether the signal ended it in the phase, and how often it was resumed.

    Raises:
        RuntimeError: it does not end well.
    """
    run = place.start()
    while run.poll() is None and not PHASES[phase](place):
        time.sleep(0.001)
    time.sleep(wait)
    reached = run.poll() is None
    if reached:
        # Ctrl-C reaches every process of a terminal; others signals, the one that was named.
        (os.killpg if how is signal.SIGINT else os.kill)(run.pid, how)
    status = run.wait(300)
    reached = reached and status != 0
    tries = 0
    while status != 0:
        tries += 1
        if tries > 4:
            raise RuntimeError(f"status {status}: {place.printed[-1500:]}")
        if any(is_complete(path.parent) for path in place.outputs.glob("*/*/result.json")):
            break  # the signal came behind its end
        status = place.start("resume=auto").wait(600)
    return reached, tries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beside", type=int, default=2, help="commands at a time")
    parser.add_argument("--subjects", nargs="*", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--keep", action="store_true", help="keep the folders of kills that did not end equal")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    top = Path(tempfile.mkdtemp(prefix="kills_"))
    base = make_base(top)
    whole = {}
    for subject in asked.subjects:
        place = make_place(top / f"whole_{subject}", subject, base)
        if place.start().wait(900) != 0:
            raise SystemExit(f"{subject} does not run by itself:\n{place.printed[-3000:]}")
        whole[subject] = outcome(place)
        print(f"undisturbed: {subject}, {len(whole[subject])} trainings", flush=True)

    cells = [(phase, how) for phase in PHASES for how in SIGNALS]
    weights = [SUBJECTS[subject][0] for subject in asked.subjects]
    # Each subject in turn, by its share; of each, every phase and signal before one comes again.
    plan, orders = [], {subject: draw.sample(cells, len(cells)) for subject in asked.subjects}
    counts = dict.fromkeys(asked.subjects, 0)
    for number in range(asked.kills):
        subject = min(asked.subjects, key=lambda s: (counts[s] + 1) / weights[asked.subjects.index(s)])
        phase, how = orders[subject][counts[subject] % len(cells)]
        counts[subject] += 1
        plan.append((number, subject, phase, how, draw.uniform(0, 0.05)))

    def attempt(task: tuple[int, str, str, signal.Signals, float]) -> tuple[str, str, str, str]:
        number, subject, phase, how, wait = task
        place = make_place(top / f"kill_{number}", subject, base)
        try:
            reached, tries = kill_and_resume(place, phase, how, wait)
            verdict = "equal" if outcome(place) == whole[subject] else "different"
            verdict = verdict if reached or verdict != "equal" else "missed"
            more = f"resumed {tries} times"
        except Exception as failure:  # one that fails is a row of the table
            verdict, more = "failed", str(failure)
        if verdict in ("equal", "missed") or not asked.keep:
            shutil.rmtree(place.folder, ignore_errors=True)
        print(f"{number + 1}/{asked.kills} {subject}, {phase}, {how.name}: {verdict} ({more})", flush=True)
        return subject, phase, how.name, verdict

    start = time.monotonic()
    with ThreadPoolExecutor(asked.beside) as workers:
        ended = list(workers.map(attempt, plan))
    table: dict[tuple[str, str], list[str]] = defaultdict(list)
    for subject, phase, _, verdict in ended:
        table[subject, phase].append(verdict)
    print(f"\n| subject | {' | '.join(PHASES)} |\n| --- |{' --- |' * len(PHASES)}")
    for subject in asked.subjects:
        row = []
        for phase in PHASES:
            told = [verdict for verdict in table[subject, phase] if verdict != "missed"]
            row.append(f"{told.count('equal')} of {len(told)}" if told else "")
        print(f"| {subject} | {' | '.join(row)} |")
    told = [verdict for *_, verdict in ended]
    kills, took = len(told) - told.count("missed"), time.monotonic() - start
    print(f"\n{kills} kills in {took:.0f} s: {told.count('equal')} ended bitwise equal, {told.count('different')} "
          f"different, {told.count('failed')} failed; {told.count('missed')} more came behind the end")  # fmt: skip
    if not asked.keep or not {"different", "failed"} & {*told}:
        shutil.rmtree(top, ignore_errors=True)
    else:
        print(f"kept: {top}")
    raise SystemExit(bool({"different", "failed"} & {*told}))


if __name__ == "__main__":
    main()
