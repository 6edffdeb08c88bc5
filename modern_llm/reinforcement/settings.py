"""How answers are drawn in training. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modern_llm.checks import require
from modern_llm.data.solutions.settings import MOST_SAMPLES
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/rl", "drawing")


@dataclass(frozen=True)
class Drawing:
    """How answers are drawn in training.

    Args:
        samples: answers G to each problem, which are compared with one another.
        updates: optimiser steps on the answers of one draw.
        unanimous: what becomes of problems all of whose answers have the same reward, from which nothing is learned.
            `keep`: their answers are counted in the mean of the loss; `drop`: they are not; `replace`: other problems
            are drawn for them (DAPO's dynamic sampling, Yu et al. 2025, arXiv 2503.14476, section 3.2).
        most_rounds: draws for one step at most, with `replace`.
        patience: draws in a row from which nothing can be learned before the run stops.
    """

    samples: int = _DEFAULTS("samples")
    updates: int = _DEFAULTS("updates")
    unanimous: Literal["keep", "drop", "replace"] = _DEFAULTS("unanimous")
    most_rounds: int = _DEFAULTS("most_rounds")
    patience: int = _DEFAULTS("patience")

    def __post_init__(self) -> None:
        require(2 <= self.samples <= MOST_SAMPLES, "task.drawing.samples", self.samples,
                f"must lie between 2 and {MOST_SAMPLES}, because answers to a problem are compared with one another",
                "Use 8")  # fmt: skip
        for key in ("updates", "most_rounds", "patience"):
            require(
                getattr(self, key) >= 1, f"task.drawing.{key}", getattr(self, key), "must be at least 1", "Raise it"
            )
