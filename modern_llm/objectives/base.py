"""The contract between the loop and what it minimises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Batch = dict[str, Tensor]


@dataclass
class LossOutput:
    """Sums, never means: the loop divides by the count of the whole batch, so that the result does not depend on how
    a batch is cut into micro-batches.

    Attributes:
        loss_sum: scalar to minimise, summed over the targets.
        metrics: further quantities to log, each a scalar summed over the targets.
    """

    loss_sum: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """A loss over a batch. A new objective is one class with these three methods."""

    def count(self, batch: Batch) -> int:
        """Targets in a batch: what the summed loss is divided by. Called on the host, before the forward pass."""

    def tokens(self, batch: Batch) -> int:
        """Tokens that the model reads, for the throughput."""

    def __call__(self, model: Any, batch: Batch) -> LossOutput:
        """Loss of a micro-batch on the model's device."""
