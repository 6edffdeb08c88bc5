"""Averages of the weights over the steps: the choices of `trainer/average`. Imports no torch.

An average moves towards the weights by some share after a step; evaluations and checkpoints then hold the average, and
training goes on from the weights themselves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults


@dataclass(frozen=True)
class Average(ABC):
    """What the averages share.

    Args:
        start: share of the run from which on weights are averaged; before it, the weights themselves are used.
    """

    start: float

    def __post_init__(self) -> None:
        require(0 <= self.start < 1, "trainer.average.start", self.start, "must lie in [0, 1)",
                "Use 0 for the whole run")  # fmt: skip

    @abstractmethod
    def share(self, step: int, taken: int) -> float:
        """By how much the average moves towards the weights of `step`, counted from 1, where weights were `taken` so
        many times before; 0: these are left out. The first ever taken are the average."""


_EMA = Defaults("trainer/average/ema")


@dataclass(frozen=True)
class EMA(Average):
    """Exponential moving average (Polyak & Juditsky 1992; Tarvainen & Valpola 2017, arXiv 1703.01780, eq. 2): a <- d a
    + (1 - d) w, d = min(decay, (1 + n) / (10 + n)) in the n-th step, so that early weights are soon forgotten.

    Args:
        decay: d in the end.
    """

    start: float = _EMA("start")
    decay: float = _EMA("decay")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay < 1, "trainer.average.decay", self.decay, "must lie in (0, 1)", "Use 0.99")

    def share(self, step: int, taken: int) -> float:
        return 1.0 if taken == 0 else 1 - min(self.decay, (1 + taken) / (10 + taken))


_TAIL = Defaults("trainer/average/tail")


@dataclass(frozen=True)
class TailMean(Average):
    """Plain mean of the weights of every k-th step of the run's tail: the average of its last checkpoints (Izmailov et
    al. 2018, arXiv 1803.05407; Kaddour 2022, arXiv 2209.14981).

    Args:
        every: k.
    """

    start: float = _TAIL("start")
    every: int = _TAIL("every")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.every >= 1, "trainer.average.every", self.every, "must be at least 1", "Use 1 for all steps")

    def share(self, step: int, taken: int) -> float:
        return 1 / (1 + taken) if step % self.every == 0 else 0.0
