"""The memory plan against what torch's allocator gives during the same steps, with numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from parts import EVERY
from torch.profiler import ProfilerActivity, profile

from modern_llm.models import ModernDecoderLM, ModernLLMConfig, MoEConfig
from modern_llm.models.config import GQAConfig
from modern_llm.models.kernels import Device
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.memory.ledger import Ledger
from modern_llm.training.memory.plan import MemoryPlan, Step, plan_memory, rehearse
from modern_llm.training.memory.simulation import simulated
from modern_llm.training.optimization.averages import EMA
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

CPU = Hardware(device="cpu", precision="fp32")


def step_of(config: ModernLLMConfig, length: int) -> Step:
    def batch(rows: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(rows * length).view(rows, length) % (config.vocab_size or 1)
        return {"input_ids": ids, "labels": ids}

    return Step(ModernDecoderLM(config), LanguageModeling(), batch)


def allocated(make: Callable[[Runtime], Step], trainer: TrainerSettings, hardware: Hardware) -> float:
    """The most bytes that torch's allocator has given at a time while the steps run with numbers."""
    runtime = Runtime(hardware)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        step = make(runtime)
        rehearse(Ledger(64), step, trainer, runtime)
    now = most = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def compare(make: Callable[[Runtime], Step], trainer: TrainerSettings, hardware: Hardware = CPU) -> MemoryPlan:
    plan = plan_memory(make, trainer, hardware)
    measured = allocated(make, trainer, hardware)
    print("%.2f MB planned, %.2f measured, %.3f" % (plan.total/1e6, measured/1e6, plan.total/measured))
    return plan


SIZES: dict[str, Any] = {"vocab_size": 61, "max_seq_len": 128, "d_model": 128, "n_layers": 4, "n_heads": 4}
SMALL = TrainerSettings(max_steps=1, batch_size=4, optimizer=AdamW())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("changes", [{}, {"moe": MoEConfig(4, 2)}, {"gqa": GQAConfig(2)}, *EVERY.values()],
                         ids=["plain", "experts", "gqa", *EVERY])
def test_every_part(changes, half):
    config = ModernLLMConfig(**{**SIZES, **changes})
    compare(lambda _: step_of(config, 96), SMALL, replace(CPU, precision="bf16") if half else CPU)
