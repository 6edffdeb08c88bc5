"""Composing what another command would compose, from within a run."""

from __future__ import annotations

from collections.abc import Sequence

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

# Of Hydra's own settings, those that place a run or say how many there are; each run gets its own.
_OF_ONE_COMMAND = ("hydra.run", "hydra.sweep", "hydra.sweeper", "hydra/sweeper", "hydra.launcher", "hydra/launcher",
                   "hydra.mode")  # fmt: skip


def composed(overrides: Sequence[str]) -> DictConfig:
    """What a command with these overrides composes to, from the files that the command which runs now is composed of.

    Raises:
        HydraException, OmegaConfBaseException: as Hydra has them.
    """
    if not HydraConfig.initialized():
        return compose("config", list(overrides))
    elsewhere = [text for text in hydra_overrides() if text.startswith("hydra.searchpath")]
    return compose(HydraConfig.get().job.config_name, [*elsewhere, *overrides])


def hydra_overrides() -> list[str]:
    """Overrides of Hydra itself in the command that runs now, as far as they hold for every run of it."""
    typed = HydraConfig.get().overrides.hydra if HydraConfig.initialized() else []
    keys = {text: text.lstrip("+~").split("=", 1)[0].split("@")[0] for text in typed}
    return [
        text for text, key in keys.items() if not any(key == o or key.startswith((f"{o}.",)) for o in _OF_ONE_COMMAND)
    ]


def is_single_run() -> bool:
    """Whether the command is one run; in a sweep, Hydra's launchers are told of each job's failure."""
    return HydraConfig.get().mode == RunMode.RUN
