"""What `trainer` and `hardware` configure. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.training.budget import Budget
from modern_llm.training.logs.loggers import Watcher
from modern_llm.training.optimization.averages import Average
from modern_llm.training.optimization.optimizers import AdamW, OptimizerSettings
from modern_llm.training.optimization.schedules import Cosine, Schedule

_TRAINER_SETTINGS = Defaults("trainer/default")


@dataclass(frozen=True)
class TrainerSettings:
    """How the loop runs. The arithmetic of a step depends on these alone, never on `Hardware.micro_batch_size`.

    Args:
        max_steps: optimiser steps; null: as many as the other budgets give.
        max_tokens: tokens read; null: no limit.
        max_minutes: minutes of training over all sittings, evaluation left out; null: no limit. What is reached first
            ends the run, and the schedule follows it.
        batch_size: sequences per optimiser step.
        optimizer: one of `optimization/optimizers.py`.
        schedule: one of `optimization/schedules.py`.
        average: of the weights, one of `optimization/averages.py`, which is evaluated and kept; null: the weights
            themselves.
        grad_clip: largest norm of the whole gradient; null: no limit.
        log_every: steps between rows of metrics.
        eval_every: steps between evaluations; null: a tenth of max_steps. A checkpoint comes before each.
        save_every: steps between checkpoints; null: as eval_every.
        keep_checkpoints: newest checkpoints that stay; the best one stays besides.
        monitor: evaluation metric that decides which checkpoint is best; the evaluation knows which way is better.
        early_stopping_patience: evaluations without a new best after which training stops; null: never.
        max_bad_steps: consecutive steps without a finite loss and gradient after which the run stops; each is
            skipped.
        spike_factor: skip a step whose gradient norm exceeds this many times its running mean; null: never.
        callbacks: who watches besides the logger, by a name of your own. They see numbers, and change nothing.
    """

    max_steps: int | None = 1000
    max_tokens: int | None = _TRAINER_SETTINGS("max_tokens")
    max_minutes: float | None = _TRAINER_SETTINGS("max_minutes")
    batch_size: int = _TRAINER_SETTINGS("batch_size")
    optimizer: OptimizerSettings = field(default_factory=AdamW)
    schedule: Schedule = field(default_factory=Cosine)
    average: Average | None = None
    grad_clip: float | None = _TRAINER_SETTINGS("grad_clip")
    log_every: int = _TRAINER_SETTINGS("log_every")
    eval_every: int | None = _TRAINER_SETTINGS("eval_every")
    save_every: int | None = _TRAINER_SETTINGS("save_every")
    keep_checkpoints: int = _TRAINER_SETTINGS("keep_checkpoints")
    monitor: str = _TRAINER_SETTINGS("monitor")
    early_stopping_patience: int | None = _TRAINER_SETTINGS("early_stopping_patience")
    max_bad_steps: int = _TRAINER_SETTINGS("max_bad_steps")
    spike_factor: float | None = _TRAINER_SETTINGS("spike_factor")
    callbacks: Mapping[str, Watcher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("batch_size", "log_every", "keep_checkpoints", "max_bad_steps"):
            require(getattr(self, key) >= 1, f"trainer.{key}", getattr(self, key), "must be at least 1", "Raise it")
        for key in ("max_steps", "max_tokens", "eval_every", "save_every", "early_stopping_patience"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"trainer.{key}", value, "must be at least 1", "Raise it, or use null")
        require(self.max_minutes is None or self.max_minutes > 0, "trainer.max_minutes", self.max_minutes,
                "must be above 0", "Raise it, or use null")  # fmt: skip
        require(self.max_steps is not None or self.max_tokens is not None or self.max_minutes is not None,
                "trainer.max_steps", self.max_steps, "leaves the run without an end",
                "Give max_steps, max_tokens or max_minutes")  # fmt: skip
        require(self.max_steps is not None or self.eval_every is not None, "trainer.eval_every", self.eval_every,
                "is a tenth of trainer.max_steps=null", "Give the steps between evaluations")  # fmt: skip
        require(self.grad_clip is None or self.grad_clip > 0, "trainer.grad_clip", self.grad_clip, "must be above 0",
                "Use null for no limit")  # fmt: skip
        require(self.spike_factor is None or self.spike_factor > 1, "trainer.spike_factor", self.spike_factor,
                "must be above 1", "Use 10, or null for never")  # fmt: skip

    @property
    def eval_interval(self) -> int:
        """Steps between evaluations."""
        return self.eval_every or max((self.max_steps or 0) // 10, 1)

    @property
    def budget(self) -> Budget:
        """When the run ends."""
        return Budget(self.max_steps, self.max_tokens, self.max_minutes)

    @property
    def save_interval(self) -> int:
        """Steps between checkpoints."""
        return self.save_every or self.eval_interval


_HARDWARE = Defaults("hardware/auto")


@dataclass(frozen=True)
class Hardware:
    """How the machine is used. Nothing here changes what is computed, but for rounding.

    Args:
        device: `auto` takes CUDA, then Apple's MPS, then the CPU.
        precision: `auto` measures 16-bit products against fp32 and takes bf16 only where it pays; the
            optimiser stays in fp32.
        weights: that are trained: fp32; or bf16, where matrices, tables and their gradients take half the memory.
            Updates are computed in fp32 and rounded at random, so that they are right on average.
        micro_batch_size: sequences that are computed at a time; null: the whole batch; auto: as many as the memory plan
            fits into `memory_limit_gb`, or into what is free.
        eval_batch_size: sequences per evaluation batch; null: as micro_batch_size.
        activation_checkpointing: recompute each block in the backward pass (Chen et al. 2016, arXiv 1604.06174):
            about a third more time for much less memory; a number k: the first of every k blocks.
        activation_offloading: what recomputed blocks keep lies in the host's memory until the backward pass.
        compile: torch.compile each block; whole: all blocks of a decoder of ours as one graph, with less to launch and
            more fused for a compilation that takes longer with every block.
        attention: sdpa, torch's fused kernels, which take a mask as a number for every pair of tokens; or flex, where a
            decoder of ours leaves what has windows, documents, padding, branches or a cap on its scores to
            FlexAttention (Dong et al. 2024, arXiv 2412.05496): no such mask is held, and blocks of 128 x 128 tokens in
            which nothing is visible cost nothing. It needs `compile=true` and CUDA, is for training and evaluation
            without a cache, and has not been timed on a card here.
        sharding: what several processes divide among them besides the batch: none; optimizer, the state of the
            optimiser and its work (Rajbhandari et al. 2020, arXiv 1910.02054, stage 1); or full, weights and gradients
            as well (stage 3).
        whole_checkpoint_gb: size in GB (10^9 bytes) up to which the first of several processes writes a whole
            checkpoint; of a larger one each writes and reads its share.
        overlap: read the next batch, and write checkpoints from a copy, while the device computes: auto, on a GPU; on;
            off. On a CPU it takes the memory of the copy and time of the same cores.
        memory_limit_gb: device memory in GB (10^9 bytes) that the plan must fit in; null: not planned against.
        plan_only: tell the memory plan of a training task, and end.
        int8_weights: linear maps inside the blocks are held in 8 bits where nothing is trained: faster texts,
            a little worse (`models/int8.py`).
        num_threads: CPU threads; null: torch's choice.
        peak_tflops: peak rate of dense products in the chosen precision, for model FLOP utilisation; null:
            measured with a large product at the start.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = _HARDWARE("device")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _HARDWARE("precision")
    weights: Literal["fp32", "bf16"] = _HARDWARE("weights")
    micro_batch_size: int | Literal["auto"] | None = _HARDWARE("micro_batch_size")
    eval_batch_size: int | None = _HARDWARE("eval_batch_size")
    activation_checkpointing: bool | int = _HARDWARE("activation_checkpointing")
    activation_offloading: bool = _HARDWARE("activation_offloading")
    compile: bool | Literal["whole"] = _HARDWARE("compile")
    attention: Literal["sdpa", "flex"] = _HARDWARE("attention")
    sharding: Literal["none", "optimizer", "full"] = _HARDWARE("sharding")
    whole_checkpoint_gb: float = _HARDWARE("whole_checkpoint_gb")
    overlap: Literal["auto", "on", "off"] = _HARDWARE("overlap")
    memory_limit_gb: float | None = _HARDWARE("memory_limit_gb")
    plan_only: bool = _HARDWARE("plan_only")
    int8_weights: bool = _HARDWARE("int8_weights")
    num_threads: int | None = _HARDWARE("num_threads")
    peak_tflops: float | None = _HARDWARE("peak_tflops")

    def __post_init__(self) -> None:
        for key in ("micro_batch_size", "eval_batch_size", "num_threads"):
            value = getattr(self, key)
            require(
                value in (None, "auto") or value >= 1,
                f"hardware.{key}",
                value,
                "must be at least 1",
                "Raise it, or use null",
            )
        # As one graph with the blocks, torch 2.13 cannot compile how blocks of many lengths are found (CantSplit).
        require(self.attention == "sdpa" or self.compile is True, "hardware.attention", self.attention,
                f"needs blocks that are compiled one by one, and hardware.compile={self.compile}",
                "Use hardware.compile=true or hardware.attention=sdpa")  # fmt: skip
        require(self.attention == "sdpa" or self.device in ("auto", "cuda"), "hardware.attention", self.attention,
                f"has a backward pass on CUDA alone, and hardware.device={self.device}",
                "Use hardware.attention=sdpa")  # fmt: skip
        require(self.weights == "fp32" or self.precision in ("auto", "bf16"), "hardware.weights", self.weights,
                f"needs products in bf16, and hardware.precision={self.precision}",
                "Use hardware.precision=bf16 or hardware.weights=fp32")  # fmt: skip
        require(self.weights == "fp32" or self.sharding == "none", "hardware.weights", self.weights,
                f"is for one process, and hardware.sharding={self.sharding} for several",
                "Use hardware.weights=fp32 or hardware.sharding=none")  # fmt: skip
        require(self.whole_checkpoint_gb >= 0, "hardware.whole_checkpoint_gb", self.whole_checkpoint_gb,
                "must not be below 0", "Use 0 for shares in any case")  # fmt: skip
        require(self.activation_checkpointing >= 0, "hardware.activation_checkpointing", self.activation_checkpointing,
                "must be true, false or a number of blocks", "Use 2 for every second block")  # fmt: skip
        require(not self.activation_offloading or bool(self.activation_checkpointing), "hardware.activation_offloading",
                self.activation_offloading, "moves what recomputed blocks keep, and none is recomputed",
                "Add hardware.activation_checkpointing=true")  # fmt: skip
        require(not self.activation_offloading or self.compile != "whole", "hardware.activation_offloading",
                self.activation_offloading, "works between blocks, and hardware.compile=whole has nothing between them",
                "Use hardware.compile=true")  # fmt: skip
        for key in ("memory_limit_gb", "peak_tflops"):
            value = getattr(self, key)
            require(value is None or value > 0, f"hardware.{key}", value, "must be above 0", "Raise it, or use null")

    @property
    def eval_rows(self) -> int:
        """Texts per batch of an evaluation that answers texts of many lengths."""
        return self.eval_batch_size or self._number_of_rows or 32

    def rows_at_once(self, rows: int) -> int:
        """How many of so many sequences are computed at a time. Where `auto` has not been settled, all."""
        return min(self._number_of_rows or rows, rows)

    @property
    def _number_of_rows(self) -> int | None:
        return None if self.micro_batch_size == "auto" else self.micro_batch_size
