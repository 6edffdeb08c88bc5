"""What does continuous batching bring over batches that wait for their longest answer?

    python benchmarks/continuous.py [--texts 64] [--rows 8 16] [--rounds 3]

A decoder of 6 layers x 384 with random weights writes answers whose lengths are spread as GSM8K's (log-normal, mean
69 tokens and deviation 35, behind prompts of 60 and 22), in processor seconds on one thread. Batches are of texts
of like prompts, and half as large once half of their texts have ended.
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
from transformers import LlamaConfig, LlamaForCausalLM

from modern_llm.models import from_hugging_face, generate
from modern_llm.models.decoding.continuous import generate_waiting, padded_left
from modern_llm.models.decoding.sampling import GREEDY


def lengths_of(count: int, mean: float, deviation: float) -> list[int]:
    """Log-normal lengths of that mean and deviation."""
    variance = math.log(1 + (deviation / mean) ** 2)
    drawn = torch.randn(count) * variance**0.5 + math.log(mean) - variance / 2
    return drawn.exp().round().clamp(min=1).long().tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rows", nargs="*", type=int, default=[8, 16])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SHAPES["6 layers x 384, vocabulary 8192"]
    model = from_hugging_face(LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=2048)).eval())
    sizes = sorted(zip(lengths_of(arguments.texts, 60, 22), lengths_of(arguments.texts, 69, 35), strict=True))
    prompts = [torch.randint(8192, (length,)).tolist() for length, _ in sizes]
    lengths = [length for _, length in sizes]
    longest, rows = max(lengths), []

    def waiting(count: int) -> list[list[int]]:
        options = {"max_new_tokens": longest, "sampling": GREEDY, "eos_id": 8191, "seeds": range(len(prompts))}
        return generate_waiting(model, prompts, count, finished=lambda text, ids: len(ids) == lengths[text], **options)

    def in_batches(count: int) -> list[list[int]]:
        texts: list[list[int]] = []
        for start in range(0, len(prompts), count):
            ids, mask = padded_left(prompts[start : start + count], 0, torch.device("cpu"))
            texts += generate(model, ids, mask, max_new_tokens=longest, eos_id=8191,
                              finished=lambda row, ids, start=start: len(ids) == lengths[start + row])  # fmt: skip
        return texts

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
        rows.append([count, *(f"{s:.1f}" for s in seconds.values()), f"{ratio:.2f}x", f"{same} of {len(prompts)}"])
    title = f"Processor seconds of {len(prompts)} answers of {sum(lengths) / len(lengths):.0f} tokens on average"
    print_table(title, ["rows", "batches", "continuous", "gain", "equal texts"], rows)


if __name__ == "__main__":
    main()
