"""Which run a `resume` means, and what may be changed when a run goes on.

The rule: a resumed run reads its own `config.yaml`, and the overrides of the new command line are laid over it. They
may change how long the run is, how it is watched and kept, the size of its steps from here on, and the machine. They
may not change what the run is: seed, model, data, batch, kind of optimiser. Anything else is refused, before any work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from modern_llm.config.differences import differences
from modern_llm.config.instantiate import LINKS, ConfigError
from modern_llm.config.overrides import key_of
from modern_llm.config.records import link, read_record, require_plain
from modern_llm.reporting.record import is_complete, job_status

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
    "trainer.callbacks",
    "trainer.callbacks.*",
    "trainer.optimizer.lr",
    "trainer.optimizer.weight_decay",
    "trainer.schedule.*",
    "task.samples.*",
    "task.evaluation.*",
    "task.suggested_steps",
    "task.objective_metric",
    "task.stages",
    "task.controls",
    "task.seeds",
    "task.measures.*",
    "hardware.*",
    "logger.*",
    "paths.*",
)
# What variables stand for is compared where they are used.
_NOT_PART_OF_THE_RUN = ("resume", "plugins", "name", "hydra", "tags", "tags.*", "vars", "vars.*")


def settled(config: DictConfig) -> dict[str, Any]:
    """The composed configuration without Hydra's part, without plug-ins, which a record may not allow, and without
    groups that the task does not link to: everything resolved, the task's links kept.

    Raises:
        ConfigError: a value that looks like an interpolation is left, which no record may hold.
    """
    linked = config.task if isinstance(config.get("task"), DictConfig) else {}
    unused = {"hydra", "resume", "plugins", *(name for name in LINKS if name not in linked)}
    own = [str(key) for key in config if key != "hydra"]
    resolved = OmegaConf.to_container(OmegaConf.masked_copy(config, own), resolve=True)
    assert isinstance(resolved, dict)
    plain = {str(key): value for key, value in resolved.items() if key not in unused}
    if linked:
        plain["task"] |= {name: link(name) for name in LINKS if name in linked}
    if not plain.get("vars"):
        plain.pop("vars", None)
    require_plain(plain, "the configuration")
    return plain


def protected(changes: dict[str, Any]) -> list[str]:
    """Of the changed keys, those that a resumed run may not change."""
    free = (*CHANGEABLE, *_NOT_PART_OF_THE_RUN)
    return [key for key in changes if not any(fnmatchcase(key, pattern) for pattern in free)]


def resumed_config(folder: Path, composed: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """The record of a run with the new overrides laid over it.

    Args:
        folder: of the run.
        composed: what the new command line composes to.
        overrides: the new command line's, as typed.

    Raises:
        ConfigError: an override changes what may not be changed.
    """
    recorded = read_record(folder / "config.yaml")
    fresh, wanted = settled(composed), deepcopy(recorded)
    for override in overrides:
        key = key_of(override).split("@")[0].replace("/", ".")
        if key in ("experiment", "debug"):  # a recipe brings no changes, but must be that of the run
            _refuse(folder, differences(recorded, fresh))
        if key.split(".")[0] in (*_NOT_PART_OF_THE_RUN, "experiment", "debug"):
            continue
        _lay_over(wanted, fresh, key.split("."))
    _keep_precision(recorded, wanted)
    _refuse(folder, differences(recorded, wanted))
    return wanted


def _lay_over(wanted: dict[str, Any], fresh: Any, path: list[str]) -> None:
    """Take the value at a path over, or its absence."""
    *above, last = path
    for name in above:
        fresh = fresh.get(name) if isinstance(fresh, dict) else None
        below = wanted.get(name)
        wanted[name] = wanted = dict(below) if isinstance(below, dict) else {}
    if isinstance(fresh, dict) and last in fresh:
        wanted[last] = fresh[last]
    else:
        wanted.pop(last, None)


def _keep_precision(recorded: dict[str, Any], wanted: dict[str, Any]) -> None:
    """`auto` means what it came to when the run began, as long as the device is the same."""
    before, now = recorded.get("hardware"), wanted.get("hardware")
    if isinstance(before, dict) and isinstance(now, dict):
        measured = before.get("precision", "auto")
        if now.get("precision") == "auto" and now.get("device") == before.get("device") and measured != "auto":
            now["precision"] = measured


def _refuse(folder: Path, changes: dict[str, tuple[Any, Any]]) -> None:
    refused = protected(changes)
    if refused:
        listed = "; ".join(f"{k}={changes[k][1]!r} (the run has {changes[k][0]!r})" for k in sorted(refused)[:5])
        raise ConfigError(
            f"resume={folder}: these may not change when a run is resumed: {listed}. "
            "Leave them out, or start a new run. What may change: " + ", ".join(CHANGEABLE) + "."
        )


def unfinished(outputs: Path, wanted: dict[str, Any]) -> Iterator[Path]:
    """Runs that have not come to their end, are not going, and differ from `wanted` only in what may change; the newest
    first. A record that cannot be read is told of and passed over."""
    for record in sorted(outputs.glob("*/*/config.yaml"), key=lambda p: p.parent.as_posix(), reverse=True):
        folder = record.parent
        if folder.parent.name in ("multirun", "plans") or job_status(folder) == "running" or is_complete(folder):
            continue
        try:
            recorded = read_record(record)
        except ConfigError as damaged:
            print(f"resume=auto passes over {folder}: {damaged}", file=sys.stderr)
            continue
        if not protected(differences(recorded, wanted)):
            yield folder
