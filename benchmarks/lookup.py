"""What does `sampling.lookup` bring where a text repeats what it read, and what does it cost where it does not?

    python benchmarks/lookup.py [--model NAME] [--rounds 3] [--new-tokens 96]

One text at a time, greedily, by SmolLM2-135M-Instruct imported into `ModernDecoderLM`, next to `transformers.generate`
without and with its own `prompt_lookup_num_tokens`: tokens per processor second on one thread. All must write the same
tokens, or the script stops.
"""

from __future__ import annotations

import argparse
import time
from statistics import geometric_mean, median

import torch
from harness import figure, print_table
from smollm2 import loaded_model

from modern_llm.data.chat import ChatWriter, with_chat
from modern_llm.models import from_hugging_face, generate
from modern_llm.models.decoding.sampling import Sampling

CODE = '''def area(width, height):
    """The area of a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("a side is negative")
    return width * height


def perimeter(width, height):
    """The perimeter of a rectangle."""
    if width < 0 or height < 0:
        raise ValueError("a side is negative")
    return 2 * (width + height)
'''
PASSAGE = (
    "The lighthouse stood on a narrow rock two miles from the shore. Every evening the keeper climbed the ninety "
    "steps to the lamp, filled it with oil and trimmed the wick. When fog came in from the sea he rang a bell once a "
    "minute until the morning, and wrote the hour of each ship that passed into a book bound in green cloth."
)
REPEATING = {
    "repeat a passage": f"Repeat this passage word for word.\n\n{PASSAGE}",
    "rename in code": f"Write this code again, with width renamed to breadth.\n\n{CODE}",
    "correct a passage": f"Correct the spelling of this passage.\n\n{PASSAGE.replace('keeper', 'keper')}",
}
PLAIN = {
    "a story": "Tell me a story about a fox that learns to swim.",
    "an explanation": "Why is the sky blue? Explain it to a child.",
    "a poem": "Write a poem about the sea in autumn.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="name or folder; SmolLM2-135M-Instruct unless given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=96)
    parser.add_argument("--lookup", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    loaded = loaded_model(arguments.model)
    theirs = loaded.decoder.model
    theirs.generation_config.eos_token_id = None
    ours, writer = from_hugging_face(theirs), ChatWriter(with_chat(loaded.tokenizer))
    new, rows = arguments.new_tokens, []
    ratios, found = dict[str, list[float]](), dict[str, list[float]]()
    for kind, prompts in (("repeating", REPEATING), ("plain", PLAIN)):
        for name, prompt in prompts.items():
            ids = torch.tensor([writer.prompt([{"role": "user", "content": prompt}])])
            mask = torch.ones_like(ids)

            def run_theirs(lookup: int | None, ids: torch.Tensor = ids, mask: torch.Tensor = mask) -> list[list[int]]:
                with torch.inference_mode():
                    written = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=new,
                                              prompt_lookup_num_tokens=lookup)  # fmt: skip
                return written[:, ids.shape[1] :].tolist()

            def run_ours(lookup: int, ids: torch.Tensor = ids) -> list[list[int]]:
                return generate(ours, ids, max_new_tokens=new, sampling=Sampling(temperature=0.0, lookup=lookup))

            rivals = {
                "theirs": lambda: run_theirs(None),
                "theirs, look-up": lambda: run_theirs(arguments.lookup),
                "ours": lambda: run_ours(0),
                "ours, look-up": lambda: run_ours(arguments.lookup),
            }
            texts = {side: run() for side, run in rivals.items()}
            if len({str(text) for text in texts.values()}) > 1:
                raise SystemExit(f"{name}: the sides write different tokens")
            times: dict[str, list[float]] = {side: [] for side in rivals}
            for _ in range(arguments.rounds):
                for side, run in rivals.items():
                    start = time.process_time()
                    run()
                    times[side].append(time.process_time() - start)
            took = {side: median(values) for side, values in times.items()}
            speed = {side: new / s for side, s in took.items()}
            for side, rate in speed.items():
                found.setdefault(f"{kind} {side}", []).append(rate)
            gains = [took["ours"] / took["ours, look-up"], took["theirs"] / took["ours, look-up"],
                     took["theirs, look-up"] / took["ours, look-up"]]  # fmt: skip
            for place, gain in enumerate(gains):
                ratios.setdefault(f"{kind} {place}", []).append(gain)
            rows.append([f"{kind}: {name}", *(f"{s:.1f}" for s in speed.values()), *(f"{g:.2f}x" for g in gains)])
        means = [f"{geometric_mean(ratios[f'{kind} {place}']):.2f}x" for place in range(3)]
        rates = [geometric_mean(found[f"{kind} {side}"]) for side in ("ours, look-up", "theirs")]
        figure(f"look-up, {kind}", "tokens/s", *rates, geometric_mean(ratios[f"{kind} 1"]))
        rows.append([f"{kind}, geometric mean", "", "", "", "", *means])
    head = ["text", "transformers", "its look-up", "ours", "our look-up"]
    print_table(f"Tokens per processor second of one text, {new} new tokens", [*head, "gain", "over transformers",
                "over its look-up"], rows)  # fmt: skip


if __name__ == "__main__":
    main()
