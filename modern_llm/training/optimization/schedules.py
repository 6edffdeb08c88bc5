"""Learning-rate schedules as closed forms: the choices of `trainer/schedule`. Imports no torch.

A schedule gives the factor on the peak learning rate at step s of n, s = 0 … n - 1. All warm up linearly over the
first w = round(warmup_fraction n) steps, factor (s + 1) / (w + 1), so that no step has rate 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults

_CONSTANT = Defaults("trainer/schedule/constant")
_LINEAR = Defaults("trainer/schedule/linear")
_COSINE = Defaults("trainer/schedule/cosine")
_WSD = Defaults("trainer/schedule/wsd")


@dataclass(frozen=True)
class Schedule(ABC):
    """Warm-up, then whatever `after_warmup` says.

    Args:
        warmup_fraction: share of all steps in which the rate rises.
    """

    warmup_fraction: float = _CONSTANT("warmup_fraction")

    def __post_init__(self) -> None:
        require(0 <= self.warmup_fraction < 1, "trainer.schedule.warmup_fraction", self.warmup_fraction,
                "must lie in [0, 1)", "Use 0 for no warm-up")  # fmt: skip

    def factor(self, step: int, steps: float) -> float:
        """Factor on the peak rate at `step`, counted from 0, of `steps`, which may be an estimate."""
        warmup = round(self.warmup_fraction * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return self.after_warmup(min((step - warmup) / max(steps - warmup, 1), 1.0))

    @abstractmethod
    def after_warmup(self, progress: float) -> float:
        """Factor at `progress` in [0, 1] of the steps behind the warm-up."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The peak rate throughout."""

    def after_warmup(self, progress: float) -> float:
        return 1.0


@dataclass(frozen=True)
class Decay(Schedule):
    """A schedule that ends below the peak rate.

    Args:
        final_fraction: factor that the decay ends at.
    """

    final_fraction: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.final_fraction <= 1, "trainer.schedule.final_fraction", self.final_fraction,
                "must lie in [0, 1]", "Use 0.1")  # fmt: skip


@dataclass(frozen=True)
class Linear(Decay):
    """Straight down to `final_fraction`."""

    final_fraction: float = _LINEAR("final_fraction")

    def after_warmup(self, progress: float) -> float:
        return 1 - (1 - self.final_fraction) * progress


@dataclass(frozen=True)
class Cosine(Decay):
    """Half a cosine down to `final_fraction` (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""

    final_fraction: float = _COSINE("final_fraction")

    def after_warmup(self, progress: float) -> float:
        return self.final_fraction + (1 - self.final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WSD(Decay):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): the peak rate, then down to `final_fraction` over the
    last `decay_fraction` of the steps behind the warm-up, as 1 - sqrt (Hägele et al. 2024, arXiv 2405.18392) or on a
    straight line.

    Args:
        decay_fraction: share of the steps behind the warm-up in which the rate falls.
        decay_shape: sqrt or linear.
    """

    final_fraction: float = _WSD("final_fraction")
    decay_fraction: float = _WSD("decay_fraction")
    decay_shape: Literal["sqrt", "linear"] = _WSD("decay_shape")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 < self.decay_fraction <= 1, "trainer.schedule.decay_fraction", self.decay_fraction,
                "must lie in (0, 1]", "Use 0.2")  # fmt: skip

    def after_warmup(self, progress: float) -> float:
        into_decay = (progress - (1 - self.decay_fraction)) / self.decay_fraction
        if into_decay <= 0:
            return 1.0
        return 1 - (1 - self.final_fraction) * (math.sqrt(into_decay) if self.decay_shape == "sqrt" else into_decay)
