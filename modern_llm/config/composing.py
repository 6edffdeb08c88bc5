"""Composing: a command once, and, from within a run, what another command would compose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

_ONE_RUN = "hydra.mode=RUN"  # what Hydra adds to a command that says nothing of its mode
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


@contextmanager
def composing_once() -> Iterator[None]:
    """Within this, a command that is one run is composed once. Hydra composes it as one of many runs, to learn its mode
    from the files that it names, and again as what it is."""
    mode_of, loaded_by = Hydra.get_mode, ConfigLoaderImpl.load_configuration
    kept: list[tuple[list[str], DictConfig | Exception]] = []

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        found: DictConfig | Exception
        try:
            found = self.config_loader.load_configuration(config_name, overrides, RunMode.RUN)
            mode = found.hydra.mode
            if mode is None:
                found.hydra.mode = RunMode.RUN
                found.hydra.overrides.hydra.append(_ONE_RUN)
        except Exception as failure:  # it may be a sweep, which is composed otherwise
            found, mode = failure, mode_of(self, config_name, overrides)
        kept.append((list(overrides) if mode else [*overrides, _ONE_RUN], found))
        return mode

    def load(self: ConfigLoaderImpl, config_name: str | None, overrides: list[str], run_mode: RunMode,
             *more: Any, **options: Any) -> DictConfig:  # fmt: skip
        if run_mode != RunMode.RUN or not kept or kept[-1][0] != overrides:
            return loaded_by(self, config_name, overrides, run_mode, *more, **options)
        _, found = kept.pop()
        if isinstance(found, Exception):
            raise found
        return found

    Hydra.get_mode, ConfigLoaderImpl.load_configuration = get_mode, load  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode, ConfigLoaderImpl.load_configuration = mode_of, loaded_by  # type: ignore[method-assign]
