"""What the processes of a step tell each other besides gradients, and what they must have alike to begin with."""

from __future__ import annotations

import time
from zlib import crc32

import torch
from torch import Tensor, nn

from modern_llm.objectives.base import Batch
from modern_llm.processes import require_same, summed, world
from modern_llm.training.checkpoint import model_tensors
from modern_llm.training.parallel.shards import whole

_REMEDY = "Give every machine the same code, packages and files."


def require_same_model(model: nn.Module) -> None:
    """Refuse processes whose models differ.

    Raises:
        ProcessesError: they do.
    """
    if world().count > 1:
        sums = [whole(tensor).double().sum().item() for tensor in model_tensors(model).values()]
        require_same("the model", sums, _REMEDY)


def require_same_data(batch: Batch) -> None:
    """Refuse processes that have different batches of one step.

    Raises:
        ProcessesError: they do.
    """
    if world().count > 1:
        require_same("the data", [crc32(tensor.numpy().tobytes()) for tensor in batch.values()], _REMEDY)


def mean_over_processes(known: Batch, share: float) -> Batch:
    """Means over the rows of a batch, from those over the rows of each process, which has `share` of them."""
    return {name: summed(value * share) for name, value in known.items()}


def summed_step(loss: Tensor, stop: bool, metrics: dict[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, signals and metrics of a whole batch, in one message.

    Args:
        loss: what this process adds to the loss, a scalar.
        stop: whether a signal asks it for the end.
        metrics: what it adds to each, scalars.

    Returns:
        The sums: of the loss; of the processes that were asked; of the metrics.
    """
    asked = loss.new_full((), float(stop))  # filled where it lies: nothing is copied from the host
    if world().count == 1:
        return loss, asked, metrics
    loss, asked, *others = summed(torch.stack([loss, asked, *metrics.values()])).unbind()
    return loss, asked, dict(zip(metrics, others, strict=True))


def seconds_since(start: float, decides: bool) -> float:
    """Seconds since a moment of `time.perf_counter`; where they decide something, those of the first process."""
    seconds = time.perf_counter() - start
    if world().count == 1 or not decides:
        return seconds
    return float(summed(torch.tensor(seconds if world().is_first else 0.0, dtype=torch.float64)))
