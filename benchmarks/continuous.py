"""What does continuous batching bring over batches that wait for their longest answer?

    python benchmarks/continuous.py [--texts 64] [--answers 1] [--rows 8 16] [--rounds 3] [--smollm2]

A decoder of 6 layers x 384 with random weights writes answers whose lengths are spread as GSM8K's (log-normal, mean
69 tokens and deviation 35, behind prompts of 60 and 22), in processor seconds on one thread. `--answers` of them go on
from one prompt each, as best of n and learning from rewards ask for; `--smollm2` takes SmolLM2-135M-Instruct and
prompts of GSM8K instead. Batches are of texts of like prompts, and half as large once half of their texts have ended.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import torch
from decode import SHAPES
from harness import print_table
from smollm2 import gsm8k, loaded_model
from transformers import LlamaConfig, LlamaForCausalLM

from modern_llm.data.chat import ChatWriter, with_chat
from modern_llm.models import from_hugging_face
from modern_llm.models.decoding.continuous import generate_waiting
from modern_llm.models.decoding.sampling import GREEDY, Sampling


def lengths_of(count: int, mean: float, deviation: float) -> list[int]:
    """Log-normal lengths of that mean and deviation."""
    variance = math.log(1 + (deviation / mean) ** 2)
    drawn = torch.randn(count) * variance**0.5 + math.log(mean) - variance / 2
    return drawn.exp().round().clamp(min=1).long().tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--answers", type=int, default=1)
    parser.add_argument("--smollm2", action="store_true")
    parser.add_argument("--rows", nargs="*", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    problems = arguments.texts // arguments.answers
    prompts = [torch.randint(8191, (length,)).tolist() for length in lengths_of(problems, 60, 22)]
    if arguments.smollm2:
        loaded = loaded_model(None)
        model, writer = from_hugging_face(loaded.decoder.model), ChatWriter(with_chat(loaded.tokenizer))
        asked = [row.fields["question"] for row in gsm8k().examples("train", None, problems).rows]
        prompts = [writer.prompt([{"role": "user", "content": question}]) for question in asked]
    else:
        shape = SHAPES["6 layers x 384, vocabulary 8192"]
        model = from_hugging_face(LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=2048)).eval())
    prompts.sort(key=len)
    owners = [problem for problem in range(problems) for _ in range(arguments.answers)]
    lengths, rows = lengths_of(len(owners), 69, 35), []
    sampling = GREEDY if arguments.answers == 1 else Sampling(temperature=1.0)

    def write(texts: range, count: int) -> list[list[int]]:
        own = [owners[text] for text in texts]
        return generate_waiting(model, prompts[own[0] : own[-1] + 1], count, owners=[owner - own[0] for owner in own],
                                max_new_tokens=max(lengths), sampling=sampling, eos_id=model.config.vocab_size - 1,
                                finished=lambda text, ids: len(ids) == lengths[texts[text]], seeds=texts)  # fmt: skip

    def waiting(count: int) -> list[list[int]]:
        return write(range(len(owners)), count)

    def in_batches(count: int) -> list[list[int]]:
        starts = range(0, len(owners), count)
        return [text for start in starts for text in write(range(len(owners))[start : start + count], count)]

    for count in arguments.rows:
        rivals: dict[str, Callable[[int], list[list[int]]]] = {"batches": in_batches, "continuous": waiting}
        took: dict[str, list[float]] = {name: [] for name in rivals}
        written = {}
        for _ in range(arguments.rounds):
            for name, run in rivals.items():
                start = time.process_time()
                written[name] = run(count)
                took[name].append(time.process_time() - start)
        same = sum(a == b for a, b in zip(*written.values(), strict=True))
        seconds = {name: median(values) for name, values in took.items()}
        ratio = seconds["batches"] / seconds["continuous"]
        rows.append([count, *(f"{s:.1f}" for s in seconds.values()), f"{ratio:.2f}x", f"{same} of {len(owners)}"])
    title = f"Processor seconds of {len(owners)} answers of {sum(lengths) / len(lengths):.0f} tokens on average"
    print_table(title, ["rows", "batches", "continuous", "gain", "equal texts"], rows)


if __name__ == "__main__":
    main()
