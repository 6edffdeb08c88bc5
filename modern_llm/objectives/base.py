"""The contract between the loop and what it minimises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

Batch = dict[str, Tensor]  # what a stream yields and an objective reads; the keys are theirs to agree upon


@dataclass
class LossOutput:
    """Sums, never means: the loop divides by the count of the whole batch, so that the result does not depend on how
    a batch is cut into micro-batches.

    Attributes:
        loss_sum: scalar to minimise, summed over the targets.
        metrics: further quantities to log, each a scalar summed over the targets.
        row_loss_sum: scalar to minimise besides, summed over the rows of the batch: for losses that are means over all
            tokens, as the auxiliary ones of experts are. None: there is none.
        row_metrics: further quantities to log, each a scalar summed over the rows.
    """

    loss_sum: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    row_loss_sum: Tensor | None = None
    row_metrics: dict[str, Tensor] = field(default_factory=dict)

    def loss(self, targets: int, rows: int) -> Tensor:
        """The share of this micro-batch in the loss of a batch with so many targets and rows."""
        loss = self.loss_sum / targets
        return loss if self.row_loss_sum is None else loss + self.row_loss_sum / rows

    def means(self, targets: int, rows: int) -> dict[str, Tensor]:
        """The share of this micro-batch in the metrics of such a batch, detached."""
        means = {name: value.detach() / targets for name, value in self.metrics.items()}
        return means | {name: value.detach() / rows for name, value in self.row_metrics.items()}


class Objective(Protocol):
    """A loss over a batch. A new objective is one class that derives from this one and has the first three methods."""

    # What it always logs besides the loss.
    metrics: ClassVar[Sequence[str]] = ()
    # What makes a step need less memory, apart from the machine's settings.
    smaller_steps: ClassVar[Sequence[str]] = ("shorter texts", "a smaller model")

    def count(self, batch: Batch) -> int:
        """Targets in a batch: what the summed loss is divided by. Called on the host, before the forward pass."""

    def tokens(self, batch: Batch) -> int:
        """Tokens that the model reads, for the throughput."""

    def __call__(self, model: Any, batch: Batch) -> LossOutput:
        """Loss of a micro-batch on the model's device."""

    def survey(self, model: Any, micro_batches: Iterable[Batch]) -> Batch:
        """What each micro-batch has to know of the whole batch, found before the first backward pass and given along
        with each. Called where a batch is cut; nothing where the loss is a plain sum."""
        return {}

    @property
    def surveys_evaluation(self) -> bool:
        """Whether an evaluation, too, is surveyed as one batch, because its loss itself depends on all of it."""
        return False

    def examples(self, batch: Batch) -> str:
        """Which examples a batch holds, for messages."""
        return f"sequences {batch['sequence_ids'].tolist()}" if "sequence_ids" in batch else "unknown examples"


# What is counted by the host alone, so that it never has to be read back.
ON_HOST = frozenset({"lengths", "answer_lengths", "branch_lengths", "sequence_ids"})


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device of a model, on CUDA without waiting for it; what is of use to the host alone stays there.
    MPS has no float64."""

    def moved(tensor: Tensor) -> Tensor:
        if device.type == "cuda":
            return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
        if device.type == "mps" and tensor.dtype == torch.float64:
            tensor = tensor.float()
        return tensor.to(device)

    return {name: tensor if name in ON_HOST else moved(tensor) for name, tensor in batch.items()}


def add_expert_losses(output: LossOutput, states: Any, rows: int) -> None:
    """Put a model's auxiliary losses beside the loss of a micro-batch, and the load of its experts beside the metrics.

    Args:
        output: gets them.
        states: what the model's `hidden_states` gave.
        rows: of the micro-batch.
    """
    if states.aux_losses:
        output.row_loss_sum = rows * sum(states.aux_losses.values())
        output.row_metrics |= {name: rows * value for name, value in states.aux_losses.items()}
    if states.expert_load is None:
        return
    # 1 where every expert gets its share, E where one expert gets all.
    busiest = states.expert_load.amax(dim=1) * states.expert_load.shape[1]
    output.row_metrics["busiest_expert_load"] = rows * busiest.mean()
    output.row_metrics["idle_experts"] = rows * (states.expert_load == 0).float().mean()
    for layer, load in enumerate(busiest):
        output.row_metrics[f"busiest_expert_load/layer{layer}"] = rows * load


@torch.no_grad()
def survey_experts(model: Any, micro_batches: Iterable[Batch], read: Callable[[Any, Batch], Any]) -> Batch:
    """The load of the experts over a whole batch, by one forward pass more: about a third more time for a step that is
    cut. The balance loss multiplies it with router probabilities, so no sum over micro-batches replaces it; once it is
    known, the loss is a plain sum.

    Args:
        model: that may have experts.
        micro_batches: of one step.
        read: gives the model's `hidden_states` of a micro-batch.

    Returns:
        `expert_load` (layers, experts); nothing for a model that balances no experts.
    """
    if not getattr(model, "balances_experts", False):
        return {}
    return means_over_rows(micro_batches, lambda batch: {"expert_load": read(model, batch).expert_load})


def means_over_rows(micro_batches: Iterable[Batch], means: Callable[[Batch], Batch]) -> Batch:
    """Means over the rows of a whole batch.

    Args:
        micro_batches: of one step.
        means: of a micro-batch, over its rows.
    """
    total: Batch = {}
    rows = 0
    for batch in micro_batches:
        size = len(batch["input_ids"])
        total = {name: total.get(name, 0) + size * mean for name, mean in means(batch).items()}
        rows += size
    return {name: value / rows for name, value in total.items()}
