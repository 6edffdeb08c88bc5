"""What an ablation compares: the overrides of every run, checked before the first one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from modern_llm.checks import require
from modern_llm.config.differences import differences
from modern_llm.config.instantiate import ConfigError
from modern_llm.config.overrides import laid_over, override, require_own
from modern_llm.reporting.comparison.ablation import A_A, BASELINE
from modern_llm.runs.checked import task_of
from modern_llm.runs.own_jobs import OwnJobs, named_overrides
from modern_llm.runs.resume import settled

# What a difference must not come from: the text and what it is cut into, what is measured, on what it is begun.
EQUAL = ("task._target_", "task.data", "task.train_tokens", "task.tokenizer", "task.evaluation", "seed")
# What the budget says.
_LENGTH = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_minutes")


@dataclass(frozen=True)
class Cell:
    """One arm at one size: what is run with several seeds.

    Attributes:
        size: its name; empty where there is one.
        arm: its name.
    """

    size: str
    arm: str

    def __str__(self) -> str:
        return f"{self.arm} ({self.size})" if self.size else self.arm


class Arms:
    """The arms of an ablation, and the overrides of their runs.

    Args:
        baseline: overrides of every run.
        arms: name -> overrides laid over them.
        sizes: name -> overrides laid over the baseline's, below the arms'.
        allow: keys in which arms may differ although they belong to what must be equal.

    Raises:
        ValueError: names or overrides that are none.
        ConfigError: an override that no run may be given.
    """

    def __init__(self, baseline: list[str], arms: Any, sizes: Any, allow: Sequence[str]) -> None:
        self.baseline, self.allow = baseline, tuple(allow)
        self.arms, self.sizes = named_overrides("task.arms", arms), named_overrides("task.sizes", sizes) or {"": []}
        require(bool(self.arms), "task.arms", arms, "names none",
                "Give one: 'task.arms.sinks=[\"model.use_attention_sinks=true\"]'")  # fmt: skip
        reserved = [name for name in self.arms if name in (BASELINE, A_A)]
        require(not reserved, "task.arms", reserved, "is the name of a part of every ablation", "Choose another name")
        require_own("task.baseline", baseline)

    @property
    def cells(self) -> list[Cell]:
        """All that is trained, the baseline of each size first."""
        return [Cell(size, arm) for size in self.sizes for arm in (BASELINE, *self.arms)]

    def own(self, cell: Cell) -> list[str]:
        """Overrides of a cell's runs, without those that all runs of this command have."""
        return laid_over(self.baseline, self.sizes[cell.size], self.arms.get(cell.arm, []))

    def check(self, record: Mapping[str, Any]) -> None:
        """Compose and build every arm at every size, and see what it changes. Nothing is loaded.

        Args:
            record: of the ablation itself, whose machine, logger and paths all runs have.

        Raises:
            ConfigError: an arm that cannot run, that changes nothing, or what must be equal.
        """
        self._jobs = OwnJobs(record)
        self._configs: dict[Cell, DictConfig] = {}
        baselines = {}
        for cell in self.cells:
            key = "task.baseline" if cell.arm == BASELINE else f"task.arms.{cell.arm}"
            config = self._jobs.checked(f"{key} with task.sizes.{cell.size}" if cell.size else key, self.own(cell))
            self._configs[cell], whole = config, settled(config)
            if cell.arm == BASELINE:
                baselines[cell.size] = whole
            else:
                self._compare(key, differences(baselines[cell.size], whole))
        self.steps = {size: whole["trainer"].get("max_steps") for size, whole in baselines.items()}
        self.objective = task_of(baselines[next(iter(self.sizes))]).objective_metric

    def _compare(self, key: str, changed: Mapping[str, Any]) -> None:
        if not changed:
            raise ConfigError(f"{key}={self.arms[key.rsplit('.', 1)[-1]]}: changes nothing. Change something in it.")
        for name in changed:
            if name in _LENGTH:
                raise ConfigError(f"{key}: sets {name}, and task.budget says how long runs are. Leave it out.")
            if _below(name, EQUAL) and not _below(name, self.allow):
                raise ConfigError(
                    f"{key}: changes {name}, which must be equal in all arms: the difference would not be the part's. "
                    f'Leave it out, or say that it is meant: task.allow=["{name}"].'
                )

    def overrides(self, cell: Cell, *further: str) -> list[str]:
        """Overrides of a run of a cell.

        Args:
            cell: of it.
            further: laid over the cell's own.
        """
        return self._jobs.whole(laid_over(self.own(cell), further), self._configs[cell].task)

    def scaled(self, cell: Cell, factors: Mapping[str, float]) -> list[str]:
        """Overrides that multiply numbers of a cell's configuration.

        Args:
            cell: whose.
            factors: key -> factor.

        Raises:
            ConfigError: a key that is no number there.
        """
        config, found = self._configs[cell], []
        for key, factor in factors.items():
            value = OmegaConf.select(config, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or value == 0:
                raise ConfigError(
                    f"task.tuning.keys: {key} is {value!r} in {cell}, and only a number other than 0 can be tuned. "
                    "Leave it out, or set it in the baseline and the arms."
                )
            found.append(override(key, float(f"{value * factor:.6g}")))
        return found


def _below(name: str, keys: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{key}.") for key in keys)
