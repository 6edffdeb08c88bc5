"""How long a run is: in steps, in tokens, or in minutes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """A run ends when the first of these is spent; at least one is given.

    Args:
        max_steps: optimiser steps; None: no limit.
        max_tokens: tokens read; None: no limit.
        max_minutes: of training over all sittings, evaluation left out; None: no limit.
    """

    max_steps: int | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None

    def is_spent(self, step: int, tokens: int, seconds: float) -> bool:
        """Whether a run with so many steps, tokens and seconds behind it is over."""
        return (
            (self.max_steps is not None and step >= self.max_steps)
            or (self.max_tokens is not None and tokens >= self.max_tokens)
            or (self.max_minutes is not None and seconds >= 60 * self.max_minutes)
        )

    def share(self, step: int, tokens: int, seconds: float) -> float:
        """What share of a run is done, in [0, 1]: of the limit that is nearest to being reached."""
        shares = [(step, self.max_steps), (tokens, self.max_tokens), (seconds / 60, self.max_minutes)]
        return min(max(done / limit for done, limit in shares if limit is not None), 1.0)

    def length(self, step: int, tokens: int, seconds: float) -> float:
        """Steps that the run will have, if all go on like the `step` >= 1 ones so far: what a schedule follows.

        Exact for steps, and for tokens where every batch has as many. Elapsed time makes it as unsteady as the machine.
        """
        lengths: list[float] = [] if self.max_steps is None else [self.max_steps]
        if self.max_tokens is not None and tokens:
            lengths.append(step * self.max_tokens / tokens)
        if self.max_minutes is not None and seconds > 0:
            lengths.append(step * 60 * self.max_minutes / seconds)
        return max(min(lengths, default=step), step)
