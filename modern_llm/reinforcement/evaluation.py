"""How often a policy solves held-out problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.solutions.settings import MOST_SAMPLES, Reading
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from modern_llm.reinforcement.groups import Asked, Drawer, Group

_DEFAULTS = Defaults("task/rl", "evaluation")
READINGS: tuple[Reading, ...] = ("strict", "flexible")


@dataclass(frozen=True)
class HeldOut:
    """What is drawn to held-out problems.

    Args:
        samples: answers drawn to each; one more is the most likely one.
        selection: problems in the evaluations during training, a sample drawn by the seed; null: all.
        problems: the same at the end.
    """

    samples: int = _DEFAULTS("samples")
    selection: int | None = _DEFAULTS("selection")
    problems: int | None = _DEFAULTS("problems")

    def __post_init__(self) -> None:
        require(1 <= self.samples <= MOST_SAMPLES, "task.evaluation.samples", self.samples,
                f"must lie between 1 and {MOST_SAMPLES}", "Use 4")  # fmt: skip
        for key in ("selection", "problems"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.evaluation.{key}", value, "must be at least 1", "Raise it")


@dataclass(frozen=True)
class Solved:
    """What became of P problems.

    Attributes:
        groups: the answers that were drawn.
        greedy: the most likely answer to each.
        teacher_kl: divergence of the drawn answers to each from a teacher, nats per token; empty: there is none.
    """

    groups: list[Group]
    greedy: list[Group]
    teacher_kl: list[float]

    def outcomes(self, main: Reading) -> dict[str, list[float]]:
        """Figure -> its value for each problem: `pass_at_1`, `pass_at_<n>` and `greedy_em` by the main reading, and by
        the other one with its name in front; `reward`, and `reward/<name>` of the parts of a sum; `answer_tokens`,
        `ended_share`; with a teacher `teacher_kl_estimate`."""
        found: dict[str, list[float]] = {}
        for reading in READINGS:
            prefix = "" if reading == main else f"{reading}_"
            right = [group.right(reading) for group in self.groups]
            n = len(right[0])
            found[f"{prefix}pass_at_1"] = [sum(each) / n for each in right]
            if n > 1:
                found[f"{prefix}pass_at_{n}"] = [float(any(each)) for each in right]
            found[f"{prefix}greedy_em"] = [float(group.right(reading)[0]) for group in self.greedy]
        found["reward"] = [sum(group.rewards) / len(group.rewards) for group in self.groups]
        for name in self.groups[0].parts:
            found[name] = [sum(group.parts[name]) / len(group.drawn) for group in self.groups]
        found["answer_tokens"] = [sum(len(d.ids) for d in group.drawn) / len(group.drawn) for group in self.groups]
        found["ended_share"] = [sum(d.ended for d in group.drawn) / len(group.drawn) for group in self.groups]
        return found | ({"teacher_kl_estimate": self.teacher_kl} if self.teacher_kl else {})


def solved(
    drawer: Drawer,
    greedy: Drawer,
    asked: Sequence[Asked],
    turn: int,
    teacher: Callable[[list[Group]], list[float]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Solved:
    """Let a policy answer problems.

    Args:
        drawer: of the answers that are drawn.
        greedy: of the most likely ones.
        asked: the problems.
        turn: one for each evaluation, or the same one: then the draws are the same wherever the policy is.
        teacher: gives the divergences of groups from it; None: there is none.
        progress: told of problems.
    """
    found: dict[str, list[Any]] = {"groups": [], "greedy": [], "teacher_kl": []}
    for name, one in (("groups", drawer), ("greedy", greedy)):
        for places in one.parts(len(asked)):
            groups = one.marked(one.draw([asked[place] for place in places], turn))
            found[name] += groups
            if teacher is not None and one is drawer:
                found["teacher_kl"] += teacher(groups)
            if progress is not None:
                progress(len(found["groups"]) + len(found["greedy"]), 2 * len(asked))
    return Solved(**found)
