"""Work that a stranger's text decides upon, within bounds of time and memory."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class TooCostlyError(ValueError):
    """The work took more time than it may."""


@contextmanager
def bounded(seconds: float, more_bytes: int) -> Iterator[None]:
    """Let what is inside take so much time and so much memory besides what the process has. Where the system cannot
    count one of them, it is not bounded: time outside the main thread, memory outside Linux.

    Raises:
        TooCostlyError: it took longer.
        MemoryError: it asked for more memory.
    """

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TooCostlyError(f"it takes more than {seconds:.0f} s")

    in_time = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    limits = _limit_memory(more_bytes)
    before = signal.signal(signal.SIGALRM, too_long) if in_time else None
    if in_time:
        signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        if in_time:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        if limits is not None:
            resource.setrlimit(resource.RLIMIT_AS, limits)


def _limit_memory(more_bytes: int) -> tuple[int, int] | None:
    """Set the limit on addresses; returns the one of before."""
    sizes = Path("/proc/self/statm")
    if resource is None or not sizes.exists():
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + more_bytes
    if (soft != resource.RLIM_INFINITY and soft <= limit) or (hard != resource.RLIM_INFINITY and hard <= limit):
        return None
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return soft, hard
