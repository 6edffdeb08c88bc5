"""What the processes of a training step send each other, in closed forms over the configuration; no torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.parameter_kinds import MATRICES
from modern_llm.training.optimization.optimizers import Muon
from modern_llm.training.settings import Hardware, TrainerSettings


@dataclass(frozen=True)
class Traffic:
    """Bytes of content in the messages of an optimiser step, and what each process sends of them along a ring: of a
    sum twice the share that the others have, of what is gathered or scattered once (Patarasuk & Yuan 2009).

    Attributes:
        processes: that train together.
        micro_batches: of each process in a step.
        summed: gradients of which all have the sum, behind the last backward pass.
        scattered: gradients of which each has the sum of its pieces, likewise.
        gathered: weights that are gathered in every micro-batch, for the forward and the backward pass.
        updated: behind the backward pass: updates that are orthogonalised elsewhere, weights that others have updated.
    """

    processes: int
    micro_batches: int = 1
    summed: float = 0.0
    scattered: float = 0.0
    gathered: float = 0.0
    updated: float = 0.0

    @property
    def sent(self) -> float:
        """Bytes that each process sends in a step."""
        gathered = self.micro_batches * self.gathered
        return self._others * (2 * self.summed + self.scattered + gathered + self.updated)

    @property
    def exposed(self) -> float:
        """Bytes of these that no computation covers."""
        return self._others * self.updated

    def tokens_to_hide(self, flops_per_token: float, rate: float, bandwidth: float) -> float:
        """Tokens of a micro-batch in each process from which the passes take longer than the messages meanwhile.

        Args:
            flops_per_token: operations of forward and backward pass; two thirds are the backward pass.
            rate: operations in a second that are reached.
            bandwidth: bytes in a second that a process sends.
        """
        at_the_end = self._others * (2 * self.summed + self.scattered) / bandwidth
        whole = self._others * self.gathered / bandwidth
        return max((at_the_end + whole / 2) / (2 / 3), at_the_end + whole) * rate / flops_per_token

    @property
    def _others(self) -> float:
        return (self.processes - 1) / self.processes


def traffic(model: ModernLLMConfig, trainer: TrainerSettings, hardware: Hardware, processes: int) -> Traffic:
    """The messages of a step.

    Args:
        model: with `vocab_size` set, trained as a whole.
        trainer, hardware: settings.
        processes: that train together.
    """
    kinds: Counter[str] = model.parameters()
    weights = 4.0 * kinds.total()
    rows = -(-trainer.batch_size // processes)
    micro_batches = -(-rows // hardware.rows_at_once(rows))
    matrices = 4.0 * kinds[MATRICES] if isinstance(trainer.optimizer, Muon) else 0.0
    if hardware.sharding == "full":
        # What is not in a block stays whole from the forward to the backward pass.
        gathered = 2 * weights - 4.0 * model.outside_blocks
        return Traffic(processes, micro_batches, scattered=weights, gathered=gathered, updated=2 * matrices)
    updated = weights if hardware.sharding == "optimizer" else matrices
    return Traffic(processes, micro_batches, summed=weights, updated=updated)
