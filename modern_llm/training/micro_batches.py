"""A batch cut into what is computed at a time, by one process or by several."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from modern_llm.objectives.base import Batch, on_device
from modern_llm.training.dropout import dropout_by_row


class MicroBatches:
    """The parts of a process's share of a batch, on the device.

    Args:
        batch: of the step, the same in every process.
        share: the rows of this process.
        size: rows that are computed at a time.
        device: of the model.
        seed: of the dropout of the step, which belongs to the rows of the batch however it is cut.

    Yields:
        A part, while its dropout is in force, and whether it is the last.
    """

    def __init__(self, batch: Batch, share: slice, size: int, device: torch.device, seed: int) -> None:
        self.batch, self.share, self.size, self.device, self.seed = batch, share, size, device, seed

    @property
    def is_whole(self) -> bool:
        """Whether the batch is computed at once, by one process."""
        rows = len(next(iter(self.batch.values())))
        return self.share == slice(0, rows) and rows <= self.size

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        for first in range(self.share.start, self.share.stop, self.size):
            end = min(first + self.size, self.share.stop)
            with dropout_by_row(self.seed, first, end - first):
                part = {name: tensor[first:end] for name, tensor in self.batch.items()}
                yield on_device(part, self.device), end == self.share.stop
