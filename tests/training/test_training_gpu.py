"""Steps of training on a GPU: memory against the plan, and how often the host waits. Needs a GPU that CUDA knows."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.models import ModernDecoderLM
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.callbacks import Callback
from modern_llm.training.memory.plan import Step, plan_memory
from modern_llm.training.runtime import Runtime
from modern_llm.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA knows")
ROOT = Path(__file__).resolve().parents[2]
LENGTH = 512


def _trained(folder: Path, corpus: TokenCorpus, *overrides: str, watch: tuple[Callback, ...] = ()) -> Any:
    """A few steps of a decoder; its task as configured."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=[
            "task=python_docs", "model.d_model=512", "model.n_heads=8", "model.n_layers=6",
            f"model.max_seq_len={LENGTH}", "model.vocab_size=16384", "trainer.batch_size=16", "trainer.max_steps=6",
            "trainer.save_every=1000", "hardware.device=cuda", "hardware.precision=bf16", *overrides, "name=x",
        ])  # fmt: skip
    task = build(config.task)
    torch.manual_seed(0)
    trainer = Trainer(task.trainer, Runtime(task.hardware), folder, watch)
    trainer.fit(
        ModernDecoderLM(task.model), LanguageModeling(), PackedStream(corpus, LENGTH, task.trainer.batch_size, seed=0)
    )
    return task


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer/optimizer=adamw"],
        ["trainer/optimizer=adamw", "model=decoder"],
        ["model=decoder", "model/gqa=gqa", "hardware.activation_checkpointing=true"],
        ["hardware.activation_checkpointing=true", "hardware.activation_offloading=true"],
        ["model/moe=top2of8"],
        ["model.use_attention_sinks=true"],
        ["model.use_attention_sinks=true", "model/sinks=streaming", "model.sinks.window=128"],
        ["trainer/average=ema"],
        ["hardware.micro_batch_size=4"],
        ["hardware.compile=true"],
    ],
    ids=" ".join,
)
def test_the_plan_is_what_is_measured(tmp_path: Path, corpus: TokenCorpus, overrides: list[str]) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    task = _trained(tmp_path, corpus, *overrides)
    measured = torch.cuda.max_memory_allocated() - before

    def batch(rows: int) -> dict[str, torch.Tensor]:
        ids = torch.zeros(rows, LENGTH, dtype=torch.long)
        return {"input_ids": ids, "labels": ids}

    def make(_: Runtime) -> Step:
        return Step(ModernDecoderLM(task.model), LanguageModeling(), batch)

    plan = plan_memory(make, task.trainer, task.hardware)
    # A compiler on a CPU was asked what it keeps, and the allocator leaves gaps.
    assert plan.tensors == pytest.approx(measured, rel=0.1 if task.hardware.compile else 0.05), plan.table()


@pytest.mark.parametrize(
    "overrides",
    [[], ["model/moe=top2of8"], ["model.use_attention_sinks=true", "model/sinks=streaming", "model.sinks.window=32"],
     ["trainer/optimizer=adamw", "hardware.micro_batch_size=4"]],
    ids=" ".join,
)  # fmt: skip
def test_a_step_waits_for_the_gpu_by_an_event_alone(tmp_path: Path, corpus: TokenCorpus, overrides: list[str]) -> None:
    found: Counter[str] = Counter()

    def show(message: Any, *where: Any, **more: Any) -> None:
        if "synchroniz" in str(message) and "prototype" not in str(message):  # which is of the mode itself
            frames = [f for f in traceback.extract_stack() if "modern_llm" in f.filename]
            found[f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"] += 1

    class Watch(Callback):
        def on_step(self, step: int, loss: float) -> None:
            torch.cuda.set_sync_debug_mode({2: "warn", 4: "default"}.get(step, torch.cuda.get_sync_debug_mode()))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        try:
            _trained(tmp_path, corpus, "trainer.log_every=1000", *overrides, watch=(Watch(),))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not found  # what is read comes by a copy that nothing else waits for
