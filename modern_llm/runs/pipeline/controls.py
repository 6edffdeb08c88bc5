"""Controls of RL: what the policy before it becomes by as many draws without learning from wrong answers, or by
finetuning on for as long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modern_llm.checks import require
from modern_llm.config.overrides import key_of
from modern_llm.reporting.record import RunRecord

ControlName = Literal["rejection", "sft"]
CONTROLS: dict[ControlName, str] = {"rejection": "rl_rejection", "sft": "rl_sft"}  # the run of each
GIVEN_AS = {"rl_rejection": "rl", "rl_sft": "sft"}  # the stage whose overrides it has
# Whatever else says how long a training is.
_LENGTHS = ("trainer.max_steps", "trainer.max_tokens", "trainer.max_minutes", "task.suggested_steps")


def without_lengths(overrides: Sequence[str]) -> list[str]:
    """Overrides of a training whose length is told otherwise."""
    return [text for text in overrides if key_of(text) not in _LENGTHS]


def without_policy_loss(overrides: Sequence[str]) -> list[str]:
    """Overrides of a run of RL whose policy loss is another one, with settings of its own."""
    return [text for text in overrides if not key_of(text).replace("/", ".").startswith("task.policy_loss")]


@dataclass(frozen=True)
class SameTime:
    """How long SFT goes on for the control.

    Attributes:
        rl_seconds: that RL trained, answers drawn and marked included, evaluation left out.
        sft_seconds_per_step: of the stage sft, measured alike.
    """

    rl_seconds: float
    sft_seconds_per_step: float

    @classmethod
    def of(cls, folder: Path) -> SameTime:
        """From the results of a pipeline's stages rl and sft, which have finished."""
        rl, sft = (RunRecord.read(folder / stage).metrics for stage in ("rl", "sft"))
        return cls(rl["seconds"], sft["seconds"] / sft["steps"])

    @property
    def steps(self) -> int:
        """Steps of SFT in the time of RL, rounded down; one at least."""
        return max(int(self.rl_seconds / self.sft_seconds_per_step), 1)

    def facts(self) -> dict[str, Any]:
        """For the record."""
        return {"steps": self.steps, "rl_seconds": self.rl_seconds, "sft_seconds_per_step": self.sft_seconds_per_step}

    def told(self) -> str:
        """As a person reads it."""
        return (
            f"rl_sft goes on for {self.steps} steps of SFT, as many as fit into the {self.rl_seconds:.1f} s that RL "
            f"trained, at {self.sft_seconds_per_step:.4f} s a step."
        )


def solved_gain(rl: Sequence[bool], control: Sequence[bool], seed: int) -> dict[str, float]:
    """`rl_solved_gain`: the share of held-out problems that RL solves less the share that a control solves, with the
    bounds of its 95 % bootstrap interval, paired by problem.

    Args:
        rl, control: whether each problem is solved.
        seed: of the interval.
    """
    import numpy as np

    from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval

    gains = np.array(rl, float) - np.array(control, float)
    low, high = bootstrap_interval(gains, seed=seed)
    return {"rl_solved_gain": float(gains.mean()), "rl_solved_gain_low": low, "rl_solved_gain_high": high}


def require_rl(controls: Sequence[str], stages: Sequence[str]) -> None:
    """Refuse controls of an RL that does not run, and a control that is named twice.

    Raises:
        ValueError: with what to write.
    """
    once = list(dict.fromkeys(controls))
    require(list(controls) == once, "task.controls", list(controls), "names one twice",
            f"Write task.controls=[{','.join(once)}]")  # fmt: skip
    require(not controls or "rl" in stages, "task.controls", list(controls),
            f"are controls of rl, which is not among task.stages={list(stages)}", "Add rl, or use []")  # fmt: skip
