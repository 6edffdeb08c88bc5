"""Which steps are taken: not those without a finite loss and gradient, and, by choice, not those that spike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row had no finite loss or gradient."""


class Guard:
    """Judges each step before the optimiser takes it.

    Args:
        max_bad_steps: consecutive bad steps that end the run.
        spike_factor: skip a step whose gradient norm exceeds this many times the running mean; None: never.
    """

    _MEMORY = 0.98  # the running mean forgets with this factor per step
    _STEPS_BEFORE_SPIKES = 20  # steps until the running mean means something

    def __init__(self, max_bad_steps: int, spike_factor: float | None) -> None:
        self.max_bad_steps, self.spike_factor = max_bad_steps, spike_factor
        self.bad_in_a_row = self.skipped = self.seen = 0
        self.mean_norm = 0.0

    def accepts(self, loss: float, grad_norm: float, overflow_is_normal: bool) -> bool:
        """Whether the optimiser may take the step.

        Args:
            loss: of the step.
            grad_norm: of the whole gradient, before clipping.
            overflow_is_normal: with loss scaling, an infinite gradient only means that the scale is too large, as
                long as it can still fall.
        """
        if not math.isfinite(loss) or not math.isfinite(grad_norm):
            self.skipped += 1
            overflowed = overflow_is_normal and math.isfinite(loss)
            self.bad_in_a_row = self.bad_in_a_row if overflowed else self.bad_in_a_row + 1
            return False
        self.bad_in_a_row = 0
        settled = self.seen >= self._STEPS_BEFORE_SPIKES
        if self.spike_factor is not None and settled and grad_norm > self.spike_factor * self.mean_norm:
            self.skipped += 1
            return False
        weight = max(1 - self._MEMORY, 1 / (self.seen + 1))
        self.mean_norm += (grad_norm - self.mean_norm) * weight
        self.seen += 1
        return True

    @property
    def exhausted(self) -> bool:
        """Whether the run must end."""
        return self.bad_in_a_row >= self.max_bad_steps

    def diverged(self, step: int, examples: str, checkpoint: Path | None) -> TrainingDivergedError:
        """What to raise then.

        Args:
            step: that the run is at.
            examples: which the last batch holds.
            checkpoint: the last good one.
        """
        return TrainingDivergedError(
            f"step {step}: the loss or the gradient was not finite in {self.bad_in_a_row} consecutive steps. The last "
            f"batch: {examples}. Last good checkpoint: {checkpoint or 'none'}. "
            "Lower trainer.optimizer.lr, use hardware.precision=fp32, or look at these examples; then resume."
        )

    def state_dict(self) -> dict[str, Any]:
        return {k: getattr(self, k) for k in ("bad_in_a_row", "skipped", "seen", "mean_norm")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for key, value in state.items():
            setattr(self, key, value)
