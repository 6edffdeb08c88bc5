"""The one loop: everything that learns goes through `Trainer.fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modern_llm.objectives.base import Batch, Objective
from modern_llm.training.callbacks import Callback
from modern_llm.training.checkpoint import (
    Checkpoints,
    load_model_tensors,
    random_states,
    restore_random_states,
)
from modern_llm.training.guard import Guard, TrainingDivergedError
from modern_llm.training.interruption import Interrupted, StopRequest
from modern_llm.training.metrics_log import MetricsLog
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import TrainerSettings


class DataStream(Protocol):
    """Endless batches, one per optimiser step, whose place can be saved."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Evaluator(Protocol):
    """Measures a model in the middle of training.

    Attributes:
        metrics: names of what it returns, known before it runs.
    """

    @property
    def metrics(self) -> Sequence[str]: ...

    def __call__(self, model: Any) -> dict[str, float]: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: optimiser steps done.
        train_loss: mean loss since the last row of metrics.
        tokens: tokens read.
        seconds: training time over all sittings, evaluation left out.
        skipped_steps: steps that the guard did not take.
        stopped_early: whether patience ended the run.
        last_checkpoint, best_checkpoint: folders.
    """

    step: int
    train_loss: float
    tokens: int
    seconds: float
    skipped_steps: int
    stopped_early: bool
    last_checkpoint: Path | None
    best_checkpoint: Path | None


@dataclass
class _Progress:
    """What a checkpoint remembers of the loop besides weights, optimiser and generators."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_checkpoint: str | None = None
    best_value: float | None = None
    evaluations_without_best: int = 0
    # Since the last row of metrics:
    loss_sum: float = 0.0
    steps_since_log: int = 0
    tokens_since_log: int = 0
    seconds_since_log: float = 0.0
    last_loss: float = math.nan


class OutOfMemoryError(RuntimeError):
    """The step did not fit into memory; the message says what to change."""


class Trainer:
    """Optimises a model. Knows steps, precision, accumulation, clipping, schedule, checkpoints and interruption; does
    not know what a language model is.

    Args:
        settings: of the loop.
        runtime: the machine.
        folder: of the run; gets `metrics.jsonl` and `checkpoints/`.
        callbacks: who watches.
        save_extras: writes into each checkpoint what is needed to rebuild the model (configuration, tokenizer).
    """

    def __init__(
        self,
        settings: TrainerSettings,
        runtime: Runtime,
        folder: Path,
        callbacks: Sequence[Callback] = (),
        save_extras: Callable[[Path], None] = lambda folder: None,
    ) -> None:
        self.settings, self.runtime, self.callbacks = settings, runtime, callbacks
        self.save_extras = save_extras
        self.metrics_log = MetricsLog(folder / "metrics.jsonl")
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints)

    def fit(
        self,
        model: nn.Module,
        objective: Objective,
        data: DataStream,
        evaluator: Evaluator | None = None,
        flops_per_token: float | None = None,
    ) -> TrainResult:
        """Train to `settings.max_steps`, from the newest whole checkpoint of the folder where there is one.

        Args:
            model: trained in place.
            objective: what is minimised.
            data: one batch per optimiser step.
            evaluator: run every `settings.eval_interval` steps and after the last.
            flops_per_token: operations of training on one token, for the utilisation; None: not logged.

        Raises:
            ValueError: the evaluator does not give `settings.monitor`.
            Interrupted: a signal came; a checkpoint is written.
            TrainingDivergedError: `settings.max_bad_steps` steps in a row were not finite.
            OutOfMemoryError: a step did not fit; the message says what to change.
            CheckpointError: a checkpoint could not be written; the last good one is untouched.
        """
        if evaluator is not None and self.settings.monitor not in evaluator.metrics:
            raise ValueError(
                f"trainer.monitor={self.settings.monitor!r}: the evaluation does not measure it. "
                f"Choose among {', '.join(evaluator.metrics)}."
            )
        self.model, self.objective, self.data, self.evaluator = self.runtime.prepare(model), objective, data, evaluator
        self.optimizer = self.settings.optimizer.build(model)
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.scaler = self.runtime.grad_scaler()
        self.guard = Guard(self.settings.max_bad_steps, self.settings.spike_factor)
        self.progress = _Progress()
        self.last_checkpoint: Path | None = None
        self.peak = self.runtime.peak_flops()[0] if flops_per_token else None
        self.flops_per_token = flops_per_token
        resumed = self._restore()
        self.model.train()
        for callback in self.callbacks:
            callback.on_start(self.progress.step, self.settings.max_steps)
        try:
            with StopRequest() as self.stop:
                if resumed:  # the evaluation behind the checkpoint may not have been reached
                    self._evaluate_if_due()
                while self.progress.step < self.settings.max_steps and not self._out_of_patience:
                    self._advance()
        finally:
            for callback in self.callbacks:
                callback.on_end()
        return self._result()

    # -- one step ---------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """One step, and what is due after it: rows, checkpoints, evaluation, a stop."""
        start = time.perf_counter()
        batch = next(self.data)
        try:
            loss = self._step(batch)
        except (torch.OutOfMemoryError, RuntimeError) as cause:
            self._explain_out_of_memory(cause, batch)
            raise
        progress, seconds = self.progress, time.perf_counter() - start
        tokens = self.objective.tokens(batch)
        progress.step += 1
        progress.tokens, progress.seconds = progress.tokens + tokens, progress.seconds + seconds
        progress.loss_sum, progress.steps_since_log = progress.loss_sum + loss, progress.steps_since_log + 1
        progress.tokens_since_log += tokens
        progress.seconds_since_log += seconds
        for callback in self.callbacks:
            callback.on_step(progress.step, loss)
        last = progress.step == self.settings.max_steps
        if progress.step % self.settings.log_every == 0 or last:
            self._log()
        stopping = self.stop.signal_number is not None
        if self.guard.exhausted:
            self._stop_diverged(batch)
        if progress.step % self.settings.save_interval == 0 or last or self._evaluation_due or stopping:
            self._save()
        if stopping:
            raise Interrupted(self.stop.signal_number or 0, self.last_checkpoint)
        self._evaluate_if_due()

    def _step(self, batch: Batch) -> float:
        """Forward and backward over micro-batches, clip, update. Returns the mean loss over the batch's targets."""
        size = self.runtime.hardware.micro_batch_size or self.settings.batch_size
        micro_batches = [
            dict(zip(batch, part, strict=True)) for part in zip(*(t.split(size) for t in batch.values()), strict=True)
        ]
        # All targets are counted before the first backward pass, so that cutting the batch changes nothing.
        count = max(self.objective.count(batch), 1)
        total = torch.zeros((), device=self.runtime.device)
        sums: dict[str, Tensor] = {}
        for micro_batch in micro_batches:
            with self.runtime.autocast():
                output = self.objective(self.model, self._to_device(micro_batch))
            self.scaler.scale(output.loss_sum / count).backward()
            total += output.loss_sum.detach()
            for name, value in output.metrics.items():
                sums[name] = sums.get(name, 0) + value.detach()
        self.scaler.unscale_(self.optimizer)
        limit = self.settings.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        factor = self.settings.schedule.factor(self.progress.step, self.settings.max_steps)
        for group, peak in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = peak * factor
        loss, self.grad_norm = torch.stack([total / count, norm.to(total.dtype)]).tolist()  # the step's one host read
        if self.guard.accepts(loss, self.grad_norm, overflow_is_normal=self.scaler.is_enabled()):
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step_metrics = {name: value / count for name, value in sums.items()}
        return loss

    def _to_device(self, batch: Batch) -> Batch:
        if self.runtime.device.type != "cuda":
            return {name: tensor.to(self.runtime.device) for name, tensor in batch.items()}
        return {name: t.pin_memory().to(self.runtime.device, non_blocking=True) for name, t in batch.items()}

    # -- what is due between steps ----------------------------------------------------------------------------------

    def _log(self) -> None:
        progress = self.progress
        rate = progress.tokens_since_log / progress.seconds_since_log
        progress.last_loss = progress.loss_sum / progress.steps_since_log
        row: dict[str, Any] = {
            "step": progress.step,
            "loss": progress.last_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": self.grad_norm,
            "tokens": progress.tokens,
            "skipped_steps": self.guard.skipped,
            **{name: value.item() for name, value in self.step_metrics.items()},
            "seconds": progress.seconds,
            "tokens_per_second": rate,
            "peak_memory_gb": self.runtime.peak_memory_gb(),
        }
        if self.flops_per_token and self.peak:
            row["mfu"] = rate * self.flops_per_token / self.peak
        if self.scaler.is_enabled():
            row["loss_scale"] = self.scaler.get_scale()
        progress.loss_sum, progress.steps_since_log = 0.0, 0
        progress.tokens_since_log, progress.seconds_since_log = 0, 0.0
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        self.metrics_log.write(row)
        for callback in self.callbacks:
            callback.on_metrics(row)

    @property
    def _evaluation_due(self) -> bool:
        step = self.progress.step
        ends = step == self.settings.max_steps or step % self.settings.eval_interval == 0
        return self.evaluator is not None and step > 0 and ends

    def _evaluate_if_due(self) -> None:
        """Evaluate behind the checkpoint of this step, which a failing or interrupted evaluation leaves whole."""
        if not self._evaluation_due or self.evaluator is None:
            return
        assert self.last_checkpoint is not None
        self.stop.at_once = True
        try:
            self.model.eval()
            with self.runtime.autocast():
                measured = self.evaluator(self.model)
        except Interrupted as interrupted:
            raise Interrupted(interrupted.signal_number, self.last_checkpoint) from None
        finally:
            self.model.train()
            self.stop.at_once = False
        self._write({"step": self.progress.step, **measured})
        value, progress = measured[self.settings.monitor], self.progress
        if progress.best_value is None or value < progress.best_value:
            progress.best_checkpoint, progress.best_value = self.last_checkpoint.name, value
            progress.evaluations_without_best = 0
            self.checkpoints.mark_best(self.last_checkpoint, value)
        else:
            progress.evaluations_without_best += 1

    @property
    def _out_of_patience(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.progress.evaluations_without_best >= patience

    def _stop_diverged(self, batch: Batch) -> None:
        ids = batch["sequence_ids"].tolist() if "sequence_ids" in batch else "unknown"
        whole = self.checkpoints.last_good()
        raise TrainingDivergedError(
            f"step {self.progress.step}: the loss or the gradient was not finite in {self.guard.bad_in_a_row} "
            f"consecutive steps. Sequences of the last batch: {ids}. Last good checkpoint: {whole or 'none'}. "
            "Lower trainer.optimizer.lr, use hardware.precision=fp32, or look at these sequences; then resume."
        )

    def _explain_out_of_memory(self, cause: BaseException, batch: Batch) -> None:
        if not isinstance(cause, torch.OutOfMemoryError) and "can't allocate memory" not in str(cause):
            return
        hardware = self.runtime.hardware
        size = hardware.micro_batch_size or self.settings.batch_size
        ways = [f"hardware.micro_batch_size={max(size // 2, 1)} (now {size}; the result does not change)"] * (size > 1)
        ways += ["hardware.activation_checkpointing=true"] * (not hardware.activation_checkpointing)
        ways += ["a shorter task.seq_len", "a smaller model"]
        raise OutOfMemoryError(
            f"step {self.progress.step + 1} did not fit into memory on {self.runtime.device}. "
            f"Try, in this order: {'; '.join(ways)}."
        ) from cause

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        state = {
            "progress": vars(self.progress),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
            "guard": self.guard.state_dict(),
            "data": self.data.state_dict(),
            "random": random_states(),
            "metrics_bytes": self.metrics_log.position(),
        }
        self.last_checkpoint = self.checkpoints.save(self.progress.step, self.model, state, self.save_extras)

    def _restore(self) -> bool:
        """Continue from the newest whole checkpoint, or say that there is none."""
        folder = self.checkpoints.last_good()
        self.last_checkpoint = folder
        if folder is None:
            self.metrics_log.rewind(0)
            self.checkpoints.mark_best(None, None)
            return False
        state = self.checkpoints.load_state(folder)
        load_model_tensors(self.model, folder)
        # Rates, decay and betas come from the configuration, so that an override on resume takes effect.
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.scaler.load_state_dict(state["scaler"])
        self.guard.load_state_dict(state["guard"])
        self.data.load_state_dict(state["data"])
        self.progress = _Progress(**state["progress"])
        self.metrics_log.rewind(state["metrics_bytes"])
        # The best as it was at that step: a later one belongs to steps that are done again.
        best = self.progress.best_checkpoint
        self.checkpoints.mark_best(self.checkpoints.folder / best if best else None, self.progress.best_value)
        restore_random_states(state["random"])
        return True

    def _result(self) -> TrainResult:
        progress = self.progress
        return TrainResult(
            step=progress.step,
            train_loss=progress.last_loss,
            tokens=progress.tokens,
            seconds=progress.seconds,
            skipped_steps=self.guard.skipped,
            stopped_early=self._out_of_patience and progress.step < self.settings.max_steps,
            last_checkpoint=self.last_checkpoint,
            best_checkpoint=self.checkpoints.best,
        )
