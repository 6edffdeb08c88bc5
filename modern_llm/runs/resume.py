"""Which run a `resume` means, and what may be changed when a run goes on.

The rule: a resumed run reads its own `config.yaml`, and the overrides of the new command line are laid over it. They
may change how long the run is, how it is watched and kept, the size of its steps from here on, and the machine. They
may not change what the run is: seed, model, data, batch, kind of optimiser. Anything else is refused, before any work.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from modern_llm.config.differences import differences
from modern_llm.config.instantiate import LINKS, ConfigError

CHANGEABLE = (
    "trainer.max_steps",
    "trainer.max_tokens",
    "trainer.max_minutes",
    "trainer.log_every",
    "trainer.eval_every",
    "trainer.save_every",
    "trainer.keep_checkpoints",
    "trainer.early_stopping_patience",
    "trainer.max_bad_steps",
    "trainer.spike_factor",
    "trainer.grad_clip",
    "trainer.optimizer.lr",
    "trainer.optimizer.weight_decay",
    "trainer.schedule.*",
    "task.samples.*",
    "task.evaluation.*",
    "task.suggested_steps",
    "task.objective_metric",
    "task.stages",
    "task.measures.*",
    "hardware.*",
    "logger.*",
    "paths.*",
)
_NOT_PART_OF_THE_RUN = ("resume", "name", "hydra")


def settled(config: DictConfig) -> dict[str, Any]:
    """The composed configuration without Hydra's part and without groups that the task does not link to: everything
    resolved, the task's links kept."""
    linked = config.task if isinstance(config.get("task"), DictConfig) else {}
    unused = {"hydra", "resume", *(link for link in LINKS if link not in linked)}
    own = [str(key) for key in config if key != "hydra"]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, own), resolve=True)
    assert isinstance(resolved, dict)
    plain = {str(key): value for key, value in resolved.items() if key not in unused}
    if linked:
        plain["task"] |= {link: f"${{{link}}}" for link in LINKS if link in linked}
    return plain


def protected(changes: dict[str, Any]) -> list[str]:
    """Of the changed keys, those that a resumed run may not change."""
    free = (*CHANGEABLE, *_NOT_PART_OF_THE_RUN)
    return [key for key in changes if not any(fnmatchcase(key, pattern) for pattern in free)]


def _plain(config: Any) -> dict[str, Any]:
    """As plain containers, links kept as links."""
    container = OmegaConf.to_container(config, resolve=False)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def resumed_config(folder: Path, composed: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """The record of a run with the new overrides laid over it.

    Args:
        folder: of the run.
        composed: what the new command line composes to.
        overrides: the new command line's, as typed.

    Raises:
        ConfigError: an override changes what may not be changed.
    """
    recorded = _plain(OmegaConf.load(folder / "config.yaml"))
    fresh = settled(composed)
    wanted = OmegaConf.create(recorded)
    for override in overrides:
        key = override.lstrip("+~").split("=", 1)[0].split("@")[0].replace("/", ".")
        if key == "experiment":  # a recipe brings no changes, but must be that of the run
            _refuse(folder, differences(recorded, fresh))
        if key.split(".")[0] in (*_NOT_PART_OF_THE_RUN, "experiment"):
            continue
        value = OmegaConf.select(OmegaConf.create(fresh), key)
        OmegaConf.update(wanted, key, value, merge=False, force_add=True)
    _refuse(folder, differences(recorded, _plain(wanted)))
    return _plain(wanted)


def _refuse(folder: Path, changes: dict[str, tuple[Any, Any]]) -> None:
    refused = protected(changes)
    if refused:
        listed = "; ".join(f"{k}={changes[k][1]!r} (the run has {changes[k][0]!r})" for k in sorted(refused)[:5])
        raise ConfigError(
            f"resume={folder}: these may not change when a run is resumed: {listed}. "
            "Leave them out, or start a new run. What may change: " + ", ".join(CHANGEABLE) + "."
        )


def newest_unfinished(outputs: Path, wanted: dict[str, Any]) -> Path | None:
    """The newest run that has not finished and differs from `wanted` only in what may change."""
    for record in sorted(outputs.glob("*/*/config.yaml"), key=lambda p: p.parent.as_posix(), reverse=True):
        if (record.parent / "result.json").exists() or record.parent.parent.name == "multirun":
            continue
        if not protected(differences(_plain(OmegaConf.load(record)), wanted)):
            return record.parent
    return None
