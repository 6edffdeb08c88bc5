"""A step that does not fit into memory: what to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from modern_llm.training.settings import Hardware


class OutOfMemoryError(RuntimeError):
    """The step did not fit into memory; the message says what to change."""


def memory_ran_out(cause: BaseException) -> bool:
    """Whether that is what an error says."""
    return isinstance(cause, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(cause)


def explain_out_of_memory(
    cause: BaseException, step: str, micro_batch_size: int, hardware: Hardware, smaller_steps: Sequence[str]
) -> None:
    """Do nothing unless `cause` says that memory ran out.

    Args:
        cause: what a step raised.
        step: which, and where.
        micro_batch_size: rows that are computed at a time.
        hardware: the settings.
        smaller_steps: what helps besides the machine's settings.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    if not memory_ran_out(cause):
        return
    ways = []
    if micro_batch_size > 1:
        half = micro_batch_size // 2
        ways.append(f"hardware.micro_batch_size={half} (now {micro_batch_size}; the result does not change)")
    if int(hardware.activation_checkpointing) != 1:
        ways.append("hardware.activation_checkpointing=true")
    elif not hardware.activation_offloading and hardware.compile != "whole":
        ways.append("hardware.activation_offloading=true")
    ways += smaller_steps
    raise OutOfMemoryError(f"{step} did not fit into memory. Try, in this order: {'; '.join(ways)}.") from cause
