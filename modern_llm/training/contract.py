"""What the loop asks of data and evaluation, and what it gives back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from modern_llm.evaluation.metrics.registry import Direction
from modern_llm.objectives.base import Batch


class DataStream(Protocol):
    """Endless batches, one per optimiser step, whose place can be saved."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def facts(self) -> dict[str, float]:
        """What to tell of it at the end, such as how often it went over its data."""


@runtime_checkable
class RampedStream(Protocol):
    """A stream whose batches depend on how far the run has come."""

    def at(self, progress: float) -> None:
        """Told before each batch what share of the run is done, in [0, 1]."""


class Evaluator(Protocol):
    """Measures a model in the middle of training.

    Attributes:
        metrics: names of what it returns and may be monitored, known before it runs, and which way each is better.
    """

    @property
    def metrics(self) -> Mapping[str, Direction]: ...

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
