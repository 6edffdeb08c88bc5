"""What was freed goes back to the machine where it is much."""

from __future__ import annotations

import sys

import psutil
import pytest
import torch

from modern_llm.training.runtime import _keep_freed_memory, give_back_freed_memory


def resident_bytes() -> int:
    return psutil.Process().memory_info().rss


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_much_is_given_back() -> None:
    _keep_freed_memory()
    blocks = [torch.ones(2**21, dtype=torch.float64) for _ in range(90)]  # 16 MiB each
    held = resident_bytes()
    blocks.clear()
    kept = resident_bytes()
    assert held - kept < 2**28  # they are there for the next step
    give_back_freed_memory()
    assert kept - resident_bytes() > 2**30
