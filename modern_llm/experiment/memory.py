"""The memory of a training task: what its step is planned to need, and how many rows of it fit."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import psutil
import torch

from modern_llm.experiment.contract import RunFolder, say
from modern_llm.files import DamagedError, read_json
from modern_llm.processes import agreed, world
from modern_llm.training.memory.plan import MemoryPlan, device_planned, plan_memory

if TYPE_CHECKING:
    from modern_llm.experiment.training import TrainingTask
    from modern_llm.training.memory.plan import Step
    from modern_llm.training.runtime import Runtime
    from modern_llm.training.settings import Hardware

_FILE = "memory.json"
_OF_FREE = 0.95  # of a GPU's free memory: its allocator leaves gaps
T = TypeVar("T", bound="TrainingTask")


def plan_of(task: TrainingTask, folder: RunFolder, hardware: Hardware) -> MemoryPlan:
    """The plan of a step of a task on a machine.

    Raises:
        ValueError: the task does not tell what a step is made of.
    """
    from modern_llm.experiment.training import Session

    def make(runtime: Runtime) -> Step:
        at = Session(folder, runtime)
        at.loaded = task.sketch(at)
        return task.rehearsal(at)

    with redirect_stderr(io.StringIO()):  # the run will say the same
        return plan_memory(make, task.trainer, hardware, world().count)


def fitted(task: T, folder: RunFolder) -> tuple[T, MemoryPlan | None]:
    """The task with a micro-batch that fits, and the plan; None: nothing asks for one, and none was made.

    Raises:
        ValueError: the step does not fit `hardware.memory_limit_gb`; the message says what would.
    """
    hardware = task.hardware
    automatic = hardware.micro_batch_size == "auto"
    if not task.trains():
        return (replace(task, hardware=replace(hardware, micro_batch_size=None)) if automatic else task), None
    if not (automatic or hardware.plan_only or hardware.memory_limit_gb is not None):
        return task, None
    found = agreed(lambda: _known(task, folder) or _found(task, folder))
    size, plan = found["micro_batch_size"], MemoryPlan(**found["plan"])
    say(f"memory: {plan.total / 1e9:.2f} GB are planned" + (f", {size} rows at a time" if automatic else ""))
    return replace(task, hardware=replace(hardware, micro_batch_size=size)), plan


def _request(task: TrainingTask) -> str:
    """What the answer depends on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return repr((task.hardware, task.trainer.batch_size, world().count, device))


def _known(task: TrainingTask, folder: RunFolder) -> Any:
    """What an earlier sitting of the run found: sums of other micro-batches would be rounded differently."""
    try:
        known = read_json(folder.path / _FILE)
    except (DamagedError, FileNotFoundError):
        return None
    return known if isinstance(known, dict) and known.get("request") == _request(task) else None


def _found(task: TrainingTask, folder: RunFolder) -> dict[str, Any]:
    """The size of a micro-batch, and the plan with it.

    Raises:
        ValueError: as in `fitted`.
    """
    hardware, rows = task.hardware, -(-task.trainer.batch_size // world().count)
    limit, must_fit = memory_limit(hardware), hardware.memory_limit_gb is not None and not hardware.plan_only

    @cache
    def planned(size: int | None, checkpointing: int) -> MemoryPlan:
        changed = replace(hardware, micro_batch_size=size, activation_checkpointing=checkpointing)
        return plan_of(task, folder, changed)

    def largest(most: int, checkpointing: int) -> int | None:
        return largest_that_fits(sizes_up_to(most), lambda size: planned(size, checkpointing).total, limit)

    given, checkpointing = hardware.micro_batch_size, hardware.activation_checkpointing
    size = largest(rows, checkpointing) or 1 if given == "auto" else given
    plan = planned(size, checkpointing)
    if must_fit and plan.total > limit:
        ways = _ways(hardware, min(size or rows, rows), largest)
        told = (
            f"What fits: {' | '.join(ways)}." if ways else "Use a smaller model, shorter texts, model/lora=on or qlora."
        )
        raise ValueError(
            f"hardware.memory_limit_gb={hardware.memory_limit_gb}: the step is planned to need {plan.total / 1e9:.1f} "
            f"GB.\n{plan.table()}\n{told}"
        )
    found = {"request": _request(task), "micro_batch_size": size, "plan": vars(plan)}
    folder.write_json(_FILE, found)
    return found


def _ways(hardware: Hardware, most: int, largest: Callable[[int, int], int | None]) -> list[str]:
    """What would make a step fit: overrides."""
    ways = []
    for checkpointing in sorted({hardware.activation_checkpointing, True}):
        try:
            size = largest(most, checkpointing)
        except ValueError:  # the model has no activation checkpointing
            continue
        if size is not None:
            own = [] if hardware.micro_batch_size == "auto" else [f"hardware.micro_batch_size={size}"]
            if checkpointing != hardware.activation_checkpointing:
                own.append("hardware.activation_checkpointing=true")
            ways.append(" ".join(own))
    return ways


def memory_limit(hardware: Hardware) -> float:
    """Bytes that a step may need: what is set, else what is free now."""
    if hardware.memory_limit_gb is not None:
        return hardware.memory_limit_gb * 1e9
    if device_planned(hardware).type == "cuda" and torch.cuda.is_available():
        return _OF_FREE * torch.cuda.mem_get_info()[0]
    return float(psutil.virtual_memory().available)


def sizes_up_to(rows: int) -> list[int]:
    """Micro-batches to choose among: powers of two, and the whole."""
    return [*(2**k for k in range(rows.bit_length()) if 2**k < rows), rows]


def largest_that_fits(sizes: Sequence[int], needed: Callable[[int], float], limit: float) -> int | None:
    """The largest size that needs no more than `limit`; None: not even the smallest. Larger ones need more."""
    fits = 0
    too_large = len(sizes)
    while fits < too_large:
        middle = (fits + too_large) // 2
        if needed(sizes[middle]) <= limit:
            fits = middle + 1
        else:
            too_large = middle
    return sizes[fits - 1] if fits else None


def tell_plan(task: TrainingTask, folder: RunFolder, plan: MemoryPlan) -> dict[str, float]:
    """Print a plan and write it down as the result of a run that does not train. Returns its figures."""
    print(plan.table())
    size = task.hardware.rows_at_once(task.trainer.batch_size)
    print(f"{'rows':<12}{size:5} of {task.trainer.batch_size} at a time")
    metrics = {"planned_memory_gb": plan.tensors / 1e9, "micro_batch_size": float(size)}
    folder.write_result("planned_memory_gb", metrics, memory_plan_gb=plan.in_gb())
    return metrics
