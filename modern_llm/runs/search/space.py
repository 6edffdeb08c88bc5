"""What is searched over, as it is typed and as Optuna has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep

from modern_llm.checks import require
from modern_llm.config.instantiate import ConfigError

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Space:
    """The overrides of a search: those that every job has, and what is searched over.

    Attributes:
        fixed: overrides as a job is given them.
        axes: key -> what is searched over.
    """

    fixed: list[str]
    axes: dict[str, Override]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """From a command.

        Raises:
            ConfigError: nothing is searched over, or an axis that makes no sense.
        """
        given = {override.get_key_element(): override for override in overrides}
        axes = {key: override for key, override in given.items() if override.is_sweep_override()}
        if not axes:
            raise ConfigError(
                "hydra/sweeper=optuna: no override is a search space. Write one as "
                "'trainer.optimizer.lr=tag(log,interval(1e-4,1e-1))', key=choice(a,b) or 'key=range(1,9)'."
            )
        fixed = [f"{key}={o.get_value_element_as_str()}" for key, o in given.items() if key not in axes]
        space = cls(fixed, axes)
        for key, axis in axes.items():
            _require_sense(key, axis)
        return space

    @property
    def told(self) -> dict[str, str]:
        """The axes as they were typed."""
        return {key: str(axis.input_line).split("=", 1)[1] for key, axis in self.axes.items()}

    def distributions(self) -> dict[str, optuna.distributions.BaseDistribution]:
        """The axes as Optuna has them."""
        return {key: _distribution(axis) for key, axis in self.axes.items()}

    def job(self, values: Mapping[str, Any]) -> list[str]:
        """Overrides of the job with these values."""
        return [*self.fixed, *(f"{key}={_text(values[key])}" for key in self.axes)]


def _require_sense(key: str, axis: Override) -> None:
    sweep, told = axis.value(), str(axis.input_line).split("=", 1)[1]
    tags: set[str] = getattr(sweep, "tags", set())
    require(tags <= {"log"}, key, told, f"has the tag {', '.join(sorted(tags - {'log'}))}, and log alone is known",
            "Leave it out")  # fmt: skip
    is_log = "log" in tags
    if isinstance(sweep, IntervalSweep):
        start, end = sweep.start, sweep.end
        require(start is not None and end is not None and start < end, key, told, "has no inside",
                "Write the smaller bound first")  # fmt: skip
        require(not is_log or (start or 0) > 0, key, told, "is logarithmic and begins at 0 or below",
                "Begin above 0, or leave the tag out")  # fmt: skip
    elif isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        require(len(values) > 0, key, told, "holds no value", "The end is not part of a range; raise it")
        steps = isinstance(sweep.step, int) and abs(sweep.step) == 1
        require(not is_log or (steps and min(values) > 0), key, told, "is logarithmic, so it needs step 1 and must "
                "begin above 0", "Change it, or leave the tag out")  # fmt: skip
    else:
        require(not is_log, key, told, "is a choice, which has no scale", "Leave the tag out")


def _distribution(axis: Override) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = axis.value()
    is_log = "log" in getattr(sweep, "tags", set())
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        assert low is not None
        assert high is not None
        if isinstance(low, int) and isinstance(high, int):  # int(interval(…))
            return IntDistribution(low, high, log=is_log)
        return FloatDistribution(float(low), float(high), log=is_log)
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        step = abs(sweep.step)
        if all(isinstance(value, int) for value in values):
            return IntDistribution(int(min(values)), int(max(values)), step=int(step), log=is_log)
        return FloatDistribution(min(values), max(values), step=step)
    assert isinstance(sweep, ChoiceSweep) or axis.is_discrete_sweep()
    # The texts as Hydra writes them, so that lists, quotes and names of groups reach a job as they were typed.
    return CategoricalDistribution(list(dict.fromkeys(axis.sweep_string_iterator())))


def _text(value: Any) -> str:
    """A value in an override; of a float, as many digits as a person may want to read."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
