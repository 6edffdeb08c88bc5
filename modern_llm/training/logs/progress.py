"""What a run remembers of itself besides weights, optimiser and generators."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from modern_llm.evaluation.metrics.registry import Direction


@dataclass
class Progress:
    """How far a run has come, and sums since the last row of metrics.

    Attributes:
        step, tokens, seconds: optimiser steps, tokens read, and training time over all sittings.
        dropout_seed: of every dropout of the run.
        last_loss: mean loss in the last row.
        loss_sum, metric_sums: over the steps since the last row.
        steps_since_log, tokens_since_log, seconds_since_log: since the last row.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    dropout_seed: int = 0
    last_loss: float = math.nan
    loss_sum: float = 0.0
    metric_sums: dict[str, Tensor] = field(default_factory=dict)
    steps_since_log: int = 0
    tokens_since_log: int = 0
    seconds_since_log: float = 0.0

    def count(self, loss: float, metrics: dict[str, Tensor], tokens: int, seconds: float) -> None:
        """Add a step.

        Args:
            loss: of the step.
            metrics: further scalars of the step, which may lie on the device.
            tokens: that were read.
            seconds: that it took.
        """
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.loss_sum += loss
        for name, value in metrics.items():
            before = self.metric_sums.get(name)
            self.metric_sums[name] = value if before is None else value + before.to(value.device)
        self.steps_since_log += 1
        self.tokens_since_log += tokens
        self.seconds_since_log += seconds

    def take_means(self) -> dict[str, float]:
        """Means since the last row, `loss` first, and `tokens_per_second`; the sums begin anew."""
        means = {"loss": self.loss_sum / self.steps_since_log}
        means |= {name: value.item() / self.steps_since_log for name, value in self.metric_sums.items()}
        means["tokens_per_second"] = self.tokens_since_log / self.seconds_since_log
        self.last_loss = means["loss"]
        self.loss_sum = self.seconds_since_log = 0.0
        self.steps_since_log = self.tokens_since_log = 0
        self.metric_sums = {}
        return means


@dataclass
class Best:
    """The best evaluation so far.

    Attributes:
        checkpoint: its folder's name, or None.
        value: what it measured.
        evaluations_since: evaluations that came after it.
    """

    checkpoint: str | None = None
    value: float | None = None
    evaluations_since: int = 0

    def judge(self, checkpoint: str, value: float, direction: Direction) -> bool:
        """Whether this evaluation is the best so far, and remember it. One that is not finite never is."""
        better = self.value is None or (value < self.value if direction == "lower" else value > self.value)
        if not (better and math.isfinite(value)):
            self.evaluations_since += 1
            return False
        self.checkpoint, self.value, self.evaluations_since = checkpoint, value, 0
        return True
