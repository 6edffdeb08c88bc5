"""The next batch, read by a thread while the device computes this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from modern_llm.objectives.base import Batch
from modern_llm.training.contract import DataStream


def may_be_read_ahead(data: DataStream) -> bool:
    """Whether the next batch is the same whatever becomes of the model and the clock until then; streams that know say
    so."""
    return bool(getattr(data, "independent_of_run", False))


def pinned(batch: Batch) -> Batch:
    """The batch in memory that a GPU reads by itself."""
    return {name: tensor.pin_memory() for name, tensor in batch.items()}


class ReadAhead:
    """A stream whose next batch is being read already. Where it stands and what it tells are those of the batch that
    was handed out last, so that a resume knows nothing of it.

    Args:
        data: the stream, which nobody else reads from now on.
        prepare: done to each batch by the thread.
    """

    def __init__(self, data: DataStream, prepare: Callable[[Batch], Batch]) -> None:
        self.data, self.prepare = data, prepare
        self._state, self._facts = data.state_dict(), data.facts()
        self._wanted: SimpleQueue[None] = SimpleQueue()
        self._read: SimpleQueue[Any] = SimpleQueue()
        self._thread: Thread | None = None

    def _work(self) -> None:
        while True:
            self._wanted.get()
            try:
                batch = self.prepare(next(self.data))
                self._read.put((batch, self.data.state_dict(), self.data.facts()))
            except BaseException as failure:
                self._read.put(failure)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            # As a daemon: a run that ends does not wait for what it would have read next.
            self._thread = Thread(target=self._work, name="reading ahead", daemon=True)
            self._thread.start()
            self._wanted.put(None)
        found = self._read.get()
        if isinstance(found, BaseException):
            self._thread = None
            raise found
        self._wanted.put(None)
        batch, self._state, self._facts = found
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands behind the batch that came last."""
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there; before the first batch is asked for."""
        assert self._thread is None
        self.data.load_state_dict(state)
        self._state, self._facts = self.data.state_dict(), self.data.facts()

    def facts(self) -> dict[str, float]:
        """What the stream told behind the batch that came last."""
        return self._facts


def read_ahead(data: DataStream, device: torch.device) -> DataStream:
    """The same stream, read ahead where that changes nothing."""
    if not may_be_read_ahead(data):
        return data
    return ReadAhead(data, pinned if device.type == "cuda" else lambda batch: batch)
