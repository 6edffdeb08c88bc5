"""How fast is greedy decoding next to `transformers.generate` on the same weights, and what does padding cost?

    python benchmarks/decode.py [--rounds 5] [--new-tokens 128] [--threads 1] [--compile]

Both sides must give the same tokens, or the script stops. fp32 on the CPU, bfloat16 on a GPU.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from harness import figure, interleave, print_table
from transformers import LlamaConfig, LlamaForCausalLM

from modern_llm.models import from_hugging_face, generate
from modern_llm.models.decoding.sampling import Sampling

PROMPT = 32
SHAPES: dict[str, dict[str, Any]] = {
    "6 layers x 384, vocabulary 8192": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
    },
    "the same, 2 key/value heads": {
        "vocab_size": 8192,
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
    },
    "SmolLM2-135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "tie_word_embeddings": True,
    },
}


def compare(
    settings: dict[str, Any], batch: int, new_tokens: int, rounds: int, padded: bool, compiled: bool
) -> dict[str, float]:
    """Median seconds of `generate` on both sides, after checking that the tokens agree; with seven tokens of padding in
    the first row, or without; our steps as one compiled graph, or not."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    nobody = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    theirs = LlamaForCausalLM(LlamaConfig(**settings, **nobody, max_position_embeddings=2048, initializer_range=0.08))
    theirs = theirs.to(device, dtype).eval()
    ours = from_hugging_face(theirs)
    ids = torch.randint(settings["vocab_size"], (batch, PROMPT), device=device)
    mask = torch.ones_like(ids)
    mask[0, : 7 * padded] = 0

    def run_theirs() -> list[list[int]]:
        with torch.inference_mode():
            return theirs.generate(
                ids, attention_mask=mask, do_sample=False, use_cache=True, max_new_tokens=new_tokens
            )[:, PROMPT:].tolist()

    def run_ours() -> list[list[int]]:
        return generate(ours, ids, mask.bool() if padded else None, max_new_tokens=new_tokens, sampling=greedy)

    greedy = Sampling(temperature=0.0, compile=compiled)
    if dtype == torch.float32 and run_theirs() != run_ours():  # bfloat16 ties are broken by the order of sums
        raise SystemExit("the two sides decode different tokens")
    return interleave({"theirs": run_theirs, "ours": run_ours}, rounds)


def padding(settings: dict[str, Any], new_tokens: int, rounds: int) -> dict[str, float]:
    """Median seconds of decoding eight prompts of one length, and of the same with seven tokens of padding in one."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    torch.manual_seed(0)
    config = LlamaConfig(**settings, bos_token_id=None, eos_token_id=None, max_position_embeddings=2048)
    model = from_hugging_face(LlamaForCausalLM(config).to(device, dtype).eval())
    ids = torch.randint(settings["vocab_size"], (8, PROMPT), device=device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[0, :7] = False
    return interleave(
        {
            "plain": lambda: generate(model, ids, max_new_tokens=new_tokens),
            "padded": lambda: generate(model, ids, attention_mask=mask, max_new_tokens=new_tokens),
        },
        rounds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, help="of the CPU; torch's choice unless given")
    parser.add_argument("--compile", action="store_true", help="our steps as one graph, sampling.compile=true")
    parser.add_argument("--shapes", nargs="*", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8])
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rows, padded = [], []
    for name in arguments.shapes:
        settings = SHAPES[name]
        for batch in arguments.batches:
            for pads in (False, True) if batch > 1 else (False,):
                took = compare(settings, batch, arguments.new_tokens, arguments.rounds, pads, arguments.compile)
                speed = {side: batch * arguments.new_tokens / s for side, s in took.items()}
                ratio, how = took["theirs"] / took["ours"], f"{batch}, padded" if pads else str(batch)
                rows.append([name, how, f"{speed['theirs']:.0f}", f"{speed['ours']:.0f}", f"{ratio:.2f}x"])
                what = f"greedy, {name}, batch {how}, {torch.get_num_threads()} threads"
                figure(what, "tokens/s", speed["ours"], speed["theirs"], ratio)
        took = padding(settings, arguments.new_tokens, arguments.rounds)
        padded.append([name, f"{took['padded'] / took['plain']:.3f}x"])
    title = f"Greedy decoding, tokens per second: prompt {PROMPT}, {arguments.new_tokens} new tokens"
    print_table(title, ["model", "batch", "transformers", "modern_llm", "ratio"], rows)
    print_table("Seconds with padding in one of eight rows, over those without", ["model", "padded / plain"], padded)


if __name__ == "__main__":
    main()
