"""A clean stop: the first SIGINT or SIGTERM ends the run after the current step, a second one at once; a search stops
a run behind an evaluation."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any


class Interrupted(BaseException):
    """Training was stopped by a signal, with a checkpoint behind it. Like KeyboardInterrupt, no `except Exception`
    may swallow it.

    Args:
        signal_number: the signal.
        checkpoint: where the run stands, or None where no step was done.
    """

    def __init__(self, signal_number: int, checkpoint: Any) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number = signal_number
        self.checkpoint = checkpoint


class Pruned(BaseException):
    """Training was stopped because the run is behind others of the same search; the message says by what. As with
    `Interrupted`, no `except Exception` may swallow it."""


class StopRequest:
    """Remembers that a stop was asked for while the context is open.

    Attributes:
        signal_number: the signal that came, or None.
        at_once: while True, the signal raises instead of waiting for the end of a step.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self.at_once = False
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> bool:
        """Whether a signal came."""
        return self.signal_number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.at_once or self.signal_number is not None:
            raise Interrupted(number, None)
        self.signal_number = number

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: signals stay with whoever has them
                break
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
