"""How long every run of an ablation is, and how arms are tuned. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

from modern_llm.checks import require
from modern_llm.config.overrides import require_own
from modern_llm.defaults import Defaults

_BUDGET = Defaults("task/ablation", "budget")
_TUNING = Defaults("task/ablation", "tuning")
BudgetName = Literal["tokens", "flops", "seconds", "steps"]


@dataclass(frozen=True)
class RunBudget:
    """What each run may spend: one of three; none: as many steps as the baseline is configured to take.

    Args:
        tokens: read in training.
        flops: floating-point operations of training, counted from the model's sizes.
        seconds: of training on this machine, evaluation left out. They become steps by the rate that each arm was
            measured to have, all arms in turn; a run ends when its steps are done.

    Raises:
        ValueError: more than one, or one that is not above 0.
    """

    tokens: float | None = _BUDGET("tokens")
    flops: float | None = _BUDGET("flops")
    seconds: float | None = _BUDGET("seconds")

    def __post_init__(self) -> None:
        given = {key: value for key, value in vars(self).items() if value is not None}
        require(len(given) <= 1, "task.budget", given, "names more than one",
                "Choose tokens, flops or seconds; the other two are reported")  # fmt: skip
        for key, value in given.items():
            require(value > 0, f"task.budget.{key}", value, "must be above 0", "Raise it")

    @property
    def name(self) -> BudgetName:
        """What is equal in all arms."""
        return next((key for key in ("tokens", "flops", "seconds") if getattr(self, key) is not None), "steps")

    def steps(self, tokens_per_step: float, flops_per_step: float, seconds_per_step: float, configured: int) -> int:
        """Optimiser steps that it is enough for.

        Args:
            tokens_per_step, flops_per_step, seconds_per_step: of an arm, as measured.
            configured: steps of the baseline's own configuration.
        """
        if self.tokens is not None:
            return int(self.tokens / tokens_per_step)
        if self.flops is not None:
            return int(self.flops / flops_per_step)
        return int(self.seconds / seconds_per_step) if self.seconds is not None else configured


@dataclass(frozen=True)
class Tuning:
    """How every arm finds its own values, with equally many trials, on seeds that are used for nothing else.

    Args:
        keys: numbers that are tuned, such as trainer.optimizer.lr; none: arms keep what they are configured with.
        factors: of what a key has in an arm; the values that are tried.
        trials: null: all combinations of the factors; else so many, drawn by Optuna (TPE) between the smallest and the
            largest factor, on a logarithmic scale.
        seeds: runs of a trial, whose mean counts.
        share: of a run's steps that a trial has. Below 1 it is cheaper, and favours what is ahead early.

    Raises:
        ValueError: an impossible value.
    """

    keys: list[str] = _TUNING("keys")
    factors: list[float] = _TUNING("factors")
    trials: int | None = _TUNING("trials")
    seeds: int = _TUNING("seeds")
    share: float = _TUNING("share")

    def __post_init__(self) -> None:
        require_own("task.tuning.keys", [f"{key}=0" for key in self.keys])
        require(len(self.factors) >= 2 and all(factor > 0 for factor in self.factors), "task.tuning.factors",
                self.factors, "must be two or more, above 0", "Use [0.5, 1, 2]")  # fmt: skip
        require(1 in self.factors or self.trials is not None, "task.tuning.factors", self.factors,
                "leave out what an arm is configured with", "Add 1")  # fmt: skip
        require(self.trials is None or self.trials >= 1, "task.tuning.trials", self.trials, "must be at least 1",
                "Use null for all combinations of the factors")  # fmt: skip
        require(self.seeds >= 1, "task.tuning.seeds", self.seeds, "must be at least 1", "Raise it")
        require(0 < self.share <= 1, "task.tuning.share", self.share, "must lie above 0 and at most be 1", "Use 1")

    @property
    def grid(self) -> list[dict[str, float]]:
        """Key -> factor of every trial, where all combinations are tried."""
        return [dict(zip(self.keys, factors, strict=True)) for factors in product(self.factors, repeat=len(self.keys))]

    @property
    def trials_per_arm(self) -> int:
        """How many there are."""
        return 0 if not self.keys else len(self.grid) if self.trials is None else self.trials

    @property
    def runs_per_arm(self) -> int:
        """Runs that they take."""
        return self.trials_per_arm * self.seeds
