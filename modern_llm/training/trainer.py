"""The one loop: everything that learns goes through `Trainer.fit`."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modern_llm.objectives.base import Batch, Objective
from modern_llm.processes import agreed, world
from modern_llm.training.ahead import read_ahead
from modern_llm.training.averaged import AveragedWeights
from modern_llm.training.behind import Behind
from modern_llm.training.callbacks import Callback
from modern_llm.training.checkpoint import CheckpointError, Checkpoints
from modern_llm.training.contract import DataStream, Evaluator, RampedStream, TrainResult
from modern_llm.training.dropout import mixed
from modern_llm.training.guard import Guard
from modern_llm.training.interruption import Interrupted, StopRequest
from modern_llm.training.logs.metrics import MetricsLog
from modern_llm.training.logs.progress import Best, Progress
from modern_llm.training.memory.exhausted import explain_out_of_memory
from modern_llm.training.micro_batches import MicroBatches
from modern_llm.training.optimization.judged import judges_itself, step_if_finite
from modern_llm.training.parallel import agreement
from modern_llm.training.reading import Reading
from modern_llm.training.runtime import Runtime, collecting_little
from modern_llm.training.saving import Restored, Saving
from modern_llm.training.settings import TrainerSettings

_EMPTY_BATCHES_IN_A_ROW = 100  # after which a stream is taken to have no targets at all


class Trainer:
    """Optimises a model. Knows steps, precision, accumulation, clipping, schedule, checkpoints and interruption; what a
    batch means, its objective knows.

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
        self.settings = settings
        self.runtime = runtime
        self.callbacks = callbacks
        self.save_extras = save_extras
        self.metrics_log = MetricsLog(folder / "metrics.jsonl")
        behind = Behind(runtime.overlaps)
        self.checkpoints = Checkpoints(folder / "checkpoints", settings.keep_checkpoints, behind)

    def fit(
        self,
        model: nn.Module,
        objective: Objective,
        data: DataStream,
        evaluator: Evaluator | None = None,
        flops_per_token: float | None = None,
    ) -> TrainResult:
        """Train until `settings.budget` is spent, from the newest whole checkpoint of the folder where there is one.

        Args:
            model: trained in place.
            objective: what is minimised.
            data: one batch per optimiser step.
            evaluator: run every `settings.eval_interval` steps and after the last.
            flops_per_token: operations of training on one token, for the utilisation; None: not logged.

        Raises:
            ValueError: the evaluator does not give `settings.monitor`; a parameter that is trained is 16-bit; the data
                have no targets.
            Interrupted: a signal came; it names the checkpoint that the run stands at.
            TrainingDivergedError: `settings.max_bad_steps` steps in a row were not finite.
            OutOfMemoryError: a step did not fit; the message says what to change.
            CheckpointError: a checkpoint could not be written, and the last good one is untouched; or all are torn.
        """
        if evaluator is not None and self.settings.monitor not in evaluator.metrics:
            raise ValueError(
                f"trainer.monitor={self.settings.monitor!r}: the evaluation does not measure it. "
                f"Choose among {', '.join(evaluator.metrics)}."
            )
        self.model = self.runtime.prepare(model, getattr(data, "same_shape", False))
        self.objective = objective
        self.data = read_ahead(data, self.runtime.device) if self.runtime.overlaps else data
        self.evaluator = evaluator
        self.parallel = self.runtime.parallel(model, self.settings.optimizer)
        self.optimizer = self.parallel.optimizer
        self.rate = self.settings.optimizer.lr
        self.averaged = AveragedWeights(self.settings.average, model)
        self.scaler = self.runtime.grad_scaler()
        self.guard = Guard(self.settings.max_bad_steps, self.settings.spike_factor)
        # Whether the device judges a step, so that the host need not wait for the verdict to launch it.
        self.judged_there = (
            self.runtime.runs_ahead
            and world().count == 1
            and self.settings.spike_factor is None
            and not self.scaler.is_enabled()
            and judges_itself(self.optimizer)
        )
        self.progress = Progress(dropout_seed=int(torch.randint(2**31, (), device="cpu")))
        self.best = Best()
        self.last_checkpoint: Path | None = None
        self.last_step_saved = 0
        self.stop_is_asked = 0.0
        self.peak = self.runtime.peak_flops()[0] if flops_per_token else None
        self.flops_per_token = flops_per_token
        self.saving = Saving(self.checkpoints, model, self.parallel, self.averaged, self.scaler, self.guard, self.data,
                             self.metrics_log, self.save_extras, self.runtime.hardware.whole_checkpoint_gb)  # fmt: skip
        restored = self._restore()
        if restored is not None:
            self.last_checkpoint, self.progress, self.best, _ = restored
        self.step_of_start = self.progress.step
        self.model.train()
        for callback in self.callbacks:
            callback.on_start(self.progress.step, self.settings.max_steps)
        try:
            with StopRequest() as self.stop:
                agreement.require_same_model(self.model)
                if restored is not None and not restored.evaluated:
                    self._evaluate_if_due()
                with collecting_little():
                    while not self._budget_is_spent and not self._out_of_patience:
                        self._advance()
                agreed(self.checkpoints.settle)
        except BaseException as cause:
            if isinstance(cause, Interrupted):
                self.checkpoints.settle()
                raise Interrupted(cause.signal_number, self.last_checkpoint) from None
            with suppress(CheckpointError):  # what ended the run says more
                self.checkpoints.settle()
            raise
        finally:
            for callback in self.callbacks:
                callback.on_end()
        self.averaged.settle()
        return self._result()

    # -- one step ---------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """One step, and what is due after it: rows, checkpoints, evaluation, a stop."""
        start = time.perf_counter()
        batch = self._next_batch()
        if self.progress.step == self.step_of_start:
            agreement.require_same_data(batch)
        tokens = self.objective.tokens(batch)
        try:
            loss, metrics = self._step(batch, tokens, start)
        except (torch.OutOfMemoryError, RuntimeError) as cause:
            hardware, where = self.runtime.hardware, f"step {self.progress.step + 1} on {self.runtime.device}"
            explain_out_of_memory(cause, where, self.micro_batch_size, hardware, self.objective.smaller_steps)
            raise
        seconds = agreement.seconds_since(start, self.settings.max_minutes is not None)
        self.progress.count(loss, metrics, tokens, seconds)
        step = self.progress.step
        for callback in self.callbacks:
            callback.on_step(step, loss)
        last = self._budget_is_spent
        if step % self.settings.log_every == 0 or last:
            self._log()
        if self.guard.exhausted:
            raise self.guard.diverged(step, self.objective.examples(batch), self.last_checkpoint)
        if step % self.settings.save_interval == 0 or last or self._evaluation_due or self._stop_asked:
            self._save()
        if self._stop_asked:  # now, or while the checkpoint was written
            if self.last_step_saved != step:
                self._save()
            raise Interrupted(self.stop.signal_number or signal.SIGTERM, self.last_checkpoint)
        self._evaluate_if_due()

    def _next_batch(self) -> Batch:
        """The next batch that has a target."""
        if isinstance(self.data, RampedStream):
            self.data.at(self.settings.budget.share(self.progress.step, self.progress.tokens, self.progress.seconds))
        for _ in range(_EMPTY_BATCHES_IN_A_ROW):
            batch = next(self.data)
            if self.objective.count(batch) > 0:
                return batch
            warnings.warn(
                f"{self.objective.examples(batch)} have no target to learn from and are skipped", stacklevel=2
            )
        raise ValueError(
            f"the data gave {_EMPTY_BATCHES_IN_A_ROW} batches in a row without a target to learn from, the last with "
            f"{self.objective.examples(batch)}. Look at these examples."
        )

    def _step(self, batch: Batch, tokens: int, start: float) -> tuple[float, dict[str, Tensor]]:
        """Forward and backward over micro-batches, clip, update.

        Args:
            batch: of the step.
            tokens: in it.
            start: when the step began.

        Returns:
            The loss, and further metrics on the device: means over the batch.
        """
        # Everything is counted before the first backward pass, so that cutting the batch changes nothing: into
        # micro-batches, or into shares of processes, which all know the whole batch.
        targets, rows = self.objective.count(batch), len(next(iter(batch.values())))
        share = world().share(rows)
        cut = MicroBatches(batch, share, self.micro_batch_size, self.runtime.device,
                           mixed(self.progress.dropout_seed, self.progress.step))  # fmt: skip
        known: Batch = {}
        if not cut.is_whole:
            with self.runtime.autocast():
                known = self.objective.survey(self.model, (part for part, _ in cut))
            known = agreement.mean_over_processes(known, (share.stop - share.start) / rows)
        loss: Tensor | None = None
        metrics: dict[str, Tensor] = {}
        for micro_batch, is_last in cut:
            if is_last:
                self.parallel.before_last_backward()
            with self.runtime.autocast():
                output = self.objective(self.model, micro_batch | known)
            part = output.loss(targets, rows)
            self.scaler.scale(part).backward()
            loss = part.detach() if loss is None else loss + part.detach()
            for name, value in output.means(targets, rows).items():
                metrics[name] = metrics.get(name, 0) + value
        assert loss is not None
        self.parallel.complete_gradients()
        self.scaler.unscale_(self.optimizer)
        norm = self.parallel.clip(self.settings.grad_clip)
        self._set_rates(tokens, agreement.seconds_since(start, self.settings.max_minutes is not None))
        loss, asked, metrics = agreement.summed_step(loss, self.stop.asked, metrics)
        read = Reading(torch.stack([loss, norm.to(loss.dtype), asked]))
        if self.judged_there:
            step_if_finite(self.optimizer, loss, norm)
        mean, self.grad_norm, self.stop_is_asked = read.numbers()
        if self.guard.accepts(mean, self.grad_norm, overflow_is_normal=self._scale_can_fall):
            if not self.judged_there:
                self.scaler.step(self.optimizer)
            self.parallel.after_step()
            self.averaged.take(self.progress.step + 1, self.done_share)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)  # the optimiser may have a share of the parameters alone
        return mean, metrics

    @property
    def _stop_asked(self) -> bool:
        """Whether a signal asks for the end: one to any process ends all, after the same step."""
        return self.stop.asked if world().count == 1 else bool(self.stop_is_asked)

    @property
    def micro_batch_size(self) -> int:
        """Rows that are computed at a time."""
        return self.runtime.hardware.rows_at_once(self.settings.batch_size)

    def _set_rates(self, tokens: int, seconds: float) -> None:
        """What changes over a run, for this step, which is counted once it is done."""
        done = self.progress
        steps = self.settings.budget.length(done.step + 1, done.tokens + tokens, done.seconds + seconds)
        factor = self.settings.schedule.factor(done.step, steps)
        self.rate = self.settings.optimizer.lr * factor
        self.done_share = min(done.step / max(steps - 1, 1), 1.0)
        self.settings.optimizer.adjust(self.optimizer, factor, self.done_share)

    @property
    def _scale_can_fall(self) -> bool:
        """Whether an overflow in fp16 only says that the loss scale, which it halves, is too large."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1

    # -- what is due between steps ----------------------------------------------------------------------------------

    def _log(self) -> None:
        progress = self.progress
        means = progress.take_means()
        rate = means.pop("tokens_per_second")
        row: dict[str, Any] = {
            "step": progress.step,
            "loss": means.pop("loss"),
            "lr": self.rate,
            "grad_norm": self.grad_norm,
            "tokens": progress.tokens,
            "skipped_steps": self.guard.skipped,
            **means,
            "seconds": progress.seconds,
            "tokens_per_second": rate,
            "peak_memory_gb": self.runtime.peak_memory_gb(),
        }
        if self.flops_per_token and self.peak:
            row["mfu"] = rate * self.flops_per_token / (self.peak * world().count)
        if self.scaler.is_enabled():
            row["loss_scale"] = self.scaler.get_scale()
        self._write(row)

    def _write(self, row: dict[str, Any]) -> None:
        self.metrics_log.write(row)
        for callback in self.callbacks:
            callback.on_metrics(row)

    @property
    def _budget_is_spent(self) -> bool:
        return self.settings.budget.is_spent(self.progress.step, self.progress.tokens, self.progress.seconds)

    @property
    def _evaluation_due(self) -> bool:
        step = self.progress.step
        return (
            self.evaluator is not None
            and step > 0
            and (self._budget_is_spent or step % self.settings.eval_interval == 0)
        )

    def _evaluate_if_due(self) -> None:
        """Evaluate behind the checkpoint of this step, which a failing or interrupted evaluation leaves whole."""
        if not self._evaluation_due or self.evaluator is None:
            return
        assert self.last_checkpoint is not None
        with self._interruptible(), self.averaged.in_place(), self.runtime.autocast():
            measured = self.evaluator(self.model)
            self.parallel.rest()
        measured = agreed(lambda: measured)  # to the last bit: all decide by it
        row = {"step": self.progress.step, **measured}
        self._write(row)
        monitor = self.settings.monitor
        if self.best.judge(self.last_checkpoint.name, measured[monitor], self.evaluator.metrics[monitor]):
            self.checkpoints.mark_best(self.last_checkpoint, self.best.value)
        self.checkpoints.note_evaluation(self.last_checkpoint, {"row": row, "best": vars(self.best)})

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Evaluation mode, which a signal ends at once: the checkpoint is written."""
        self.model.eval()
        self.stop.at_once = True
        try:
            yield
        finally:
            self.stop.at_once = False
            self.model.train()

    @property
    def _out_of_patience(self) -> bool:
        patience = self.settings.early_stopping_patience
        return patience is not None and self.best.evaluations_since >= patience

    def _restore(self) -> Restored | None:
        return self.saving.restore()

    def _save(self) -> None:
        self.last_checkpoint = self.saving.save(self.progress, self.best)
        self.last_step_saved = self.progress.step

    def _result(self) -> TrainResult:
        progress, best = self.progress, agreed(lambda: getattr(self.checkpoints.best, "name", None))
        return TrainResult(
            step=progress.step,
            train_loss=progress.last_loss,
            tokens=progress.tokens,
            seconds=progress.seconds,
            skipped_steps=self.guard.skipped,
            stopped_early=self._out_of_patience and not self._budget_is_spent,
            last_checkpoint=self.last_checkpoint,
            best_checkpoint=self.checkpoints.folder / best if best else None,
        )
