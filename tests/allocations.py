"""What torch's allocator gave, as its profiler saw it."""

from __future__ import annotations

from typing import Any


def most_allocated(found: Any) -> int:
    """The most bytes at a time within a profile with `profile_memory`."""
    now = most = 0
    for event in sorted(found.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
