"""What the benchmarks against another trainer share: our loop over given batches, rates, and the comparison."""

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
from harness import figure, in_own_process, peak_memory_mib, print_table
from torch import nn

from modern_llm.data.batches import Batch
from modern_llm.objectives.base import Objective
from modern_llm.pretrained.settings import LoRA
from modern_llm.training.callbacks import Callback
from modern_llm.training.contract import DataStream
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings
from modern_llm.training.trainer import Trainer

BF16 = torch.cuda.is_available() or "--bf16" in sys.argv  # both sides; weights stay in fp32
# Processor time does not count what else runs on the machine.
clock = time.perf_counter if torch.cuda.is_available() else time.process_time
LORA = LoRA(rank=16, alpha=32, dropout=0.05)  # of both sides


class _Stream:
    """Batches in the order given."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = iter(batches)

    def __iter__(self) -> _Stream:
        return self

    def __next__(self) -> Batch:
        return next(self.batches)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def train_ours(model: nn.Module, objective: Objective, batches: list[Batch], batch_size: int) -> list[float]:
    """One step a batch through our Trainer. Returns when each step ended."""
    return train_ours_from(model, objective, _Stream(batches), len(batches), batch_size)


def train_ours_from(
    model: nn.Module, objective: Objective, stream: DataStream, steps: int, batch_size: int, **hardware: Any
) -> list[float]:
    """So many steps on what a stream gives; with further settings of the machine."""
    times: list[float] = []

    class Clock(Callback):
        def on_step(self, step: int, loss: float) -> None:
            times.append(clock())

    settings = TrainerSettings(
        max_steps=steps, batch_size=batch_size, optimizer=AdamW(lr=1e-4), eval_every=10**9, log_every=1
    )
    runtime = Runtime(Hardware(precision="bf16" if BF16 else "fp32", **hardware))
    with tempfile.TemporaryDirectory() as folder:
        Trainer(settings, runtime, Path(folder), [Clock()]).fit(model, objective, stream)
    return times


def train_theirs(trainer: type, config: type, rows: list[dict[str, Any]], settings: dict[str, Any]) -> list[float]:
    """One step a batch through a trainer of TRL, same model, same adapters. Returns when each step ended.

    Args:
        trainer, config: TRL's classes.
        rows: of the training set, in the order of the batches.
        settings: of this trainer's own, and `max_steps` and `per_device_train_batch_size`.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from smollm2 import loaded_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    from modern_llm.pretrained.lora import lora_targets

    gpu, times = torch.cuda.is_available(), list[float]()

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(clock())

    loaded = loaded_model(None)
    adapters = LoraConfig(
        r=LORA.rank,
        lora_alpha=LORA.alpha,
        lora_dropout=LORA.dropout,
        target_modules=lora_targets(loaded.base),
        task_type="CAUSAL_LM",
    )
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(Path(folder) / "base")
        del loaded
        trainer(
            model=AutoModelForCausalLM.from_pretrained(Path(folder) / "base", dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(Path(folder) / "base"),
            train_dataset=Dataset.from_list(rows),
            peft_config=adapters,
            args=config(
                output_dir=folder,
                learning_rate=1e-4,
                gradient_checkpointing=False,
                bf16=BF16,
                use_cpu=not gpu,
                train_sampling_strategy="sequential",
                pad_to_multiple_of=8,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=1,
                **settings,
            ),
            callbacks=[Clock()],
        ).train()
    return times


def report_rates(times: list[float], amounts: list[int]) -> None:
    """Print what a side measured: amounts per second between the ends of steps, the first of which is the warm-up."""
    seconds = [b - a for a, b in pairwise(times)]
    rates = [n / s for n, s in zip(amounts[1:], seconds, strict=True)]
    print(json.dumps({"rate": median(rates), "peak": peak_memory_mib()}))


def compare(title: str, sides: dict[str, str], unit: str, rounds: int, *arguments: str) -> None:
    """Each side in processes of its own, in turn, and the table; the first side against every other.

    Args:
        sides: argument that makes the script run a side -> its name.
        unit: of the rate.
        rounds: processes of each side.
        arguments: of the script, in front of the side's.
    """
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, results in found.items():
            results.append(json.loads(in_own_process(*arguments, side)))
    speed = {side: [r["rate"] for r in results] for side, results in found.items()}
    memory = {side: min(r["peak"] for r in results) for side, results in found.items()}
    rows = [[name, f"{median(speed[side]):,.4g}", f"{memory[side]:,.0f}"] for side, name in sides.items()]
    print_table(title, ["side", unit, "peak MiB"], rows)
    first, *others = sides
    for other in others:
        ratios = [a / b for a, b in zip(speed[first], speed[other], strict=True)]
        rates = median(speed[first]), median(speed[other])
        figure(f"speed, against {sides[other]}", unit, *rates, median(ratios))
        share = memory[first] / memory[other]
        figure(f"memory, against {sides[other]}", "MiB", memory[first], memory[other], share, at_most=True)
        print(f"\nagainst {sides[other]}: speed {min(ratios):.2f} to {max(ratios):.2f} x; "
              f"memory {share:.2f} x")  # fmt: skip
