"""How a study searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from modern_llm.checks import require

if TYPE_CHECKING:
    import optuna

Direction = Literal["minimize", "maximize"]
DIRECTIONS: dict[str, Direction] = {"lower": "minimize", "higher": "maximize"}  # of what a metric says is better


@dataclass(frozen=True)
class Search:
    """How a study searches.

    Args:
        n_trials: in all.
        direction: of the objective; None: its metric knows.
        sampler: what draws the trials.
        startup_trials: drawn at random before the sampler learns from them.
        seed: of the sampler.
        pruner: what stops a trial during its training.
        pruner_startup_trials: that must be finished before `median` stops one.
        pruner_warmup: share of `trainer.max_steps` in which no trial is stopped.

    Raises:
        ValueError: an impossible value.
    """

    n_trials: int
    direction: Direction | None
    sampler: Literal["tpe", "random"]
    startup_trials: int
    seed: int
    pruner: Literal["median", "halving", "none"]
    pruner_startup_trials: int
    pruner_warmup: float

    def __post_init__(self) -> None:
        choices = {"direction": (None, "minimize", "maximize"), "sampler": ("tpe", "random"),
                   "pruner": ("median", "halving", "none")}  # fmt: skip
        for key, known in choices.items():
            named = ", ".join("null" if choice is None else choice for choice in known)
            require(getattr(self, key) in known, f"hydra.sweeper.{key}", getattr(self, key), "is not known",
                    f"Choose among {named}")  # fmt: skip
        least = {"n_trials": 1, "startup_trials": 0, "seed": 0, "pruner_startup_trials": 0}
        for key, low in least.items():
            value = getattr(self, key)
            require(isinstance(value, int) and value >= low, f"hydra.sweeper.{key}", value,
                    f"must be a whole number of at least {low}", "Change it")  # fmt: skip
        require(0 <= self.pruner_warmup < 1, "hydra.sweeper.pruner_warmup", self.pruner_warmup,
                "must be at least 0 and below 1", "Change it")  # fmt: skip

    def sampler_for(self, number: int) -> optuna.samplers.BaseSampler:
        """What draws a trial. Each is drawn with a seed of its own, so that a study that is taken up again draws what
        it would have drawn."""
        import numpy as np
        import optuna

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self.sampler == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        # Trials that are still running count as bad ones, so that trials side by side are not all the same.
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials, constant_liar=True)

    def make_pruner(self) -> optuna.pruners.BasePruner:
        """What decides during training whether a trial is stopped."""
        import optuna

        if self.pruner == "median":
            return optuna.pruners.MedianPruner(self.pruner_startup_trials)
        return optuna.pruners.SuccessiveHalvingPruner() if self.pruner == "halving" else optuna.pruners.NopPruner()
