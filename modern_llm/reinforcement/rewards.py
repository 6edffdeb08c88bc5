"""What an answer is worth: the choices of `task/reward`. Imports no torch.

A reward that decides by problem and text derives from `RuleReward` and says how one answer is marked; one that needs a
model, or many answers at once, derives from `Reward`.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modern_llm.checks import require, require_expression
from modern_llm.data.solutions.settings import Reading
from modern_llm.defaults import Defaults
from modern_llm.experiment.judges import known_problems, load_judge, require_judge

if TYPE_CHECKING:
    from modern_llm.data.solutions.problems import Problem
    from modern_llm.models.decoding.generation import Continuation
    from modern_llm.training.runtime import Runtime

# Marks of answers, one answer to each problem, in their order.
Marker = Callable[[Sequence["Problem"], Sequence["Continuation"]], list[float]]
_SHOWN = 200  # characters of a text in a message


class MarkError(ValueError):
    """An answer that cannot be marked; the message names the reward's class, the problem and the answer."""


class Reward(ABC):
    """Settings of what answers are worth."""

    @abstractmethod
    def marker(self, runtime: Runtime, mirror: str | None, rows: int) -> Marker:
        """What marks answers; loads what it needs.

        Args:
            runtime: the machine.
            mirror: root of the mirror.
            rows: texts per forward pass of a model that marks.
        """

    def known_problems(self) -> frozenset[str]:
        """`problem_id` of the problems that what marks was trained on: its marks of them flatter, so they are neither
        trained nor measured on."""
        return frozenset()


class RuleReward(Reward):
    """A reward that is decided by problem and text alone."""

    @abstractmethod
    def mark(self, problem: Problem, answer: Continuation) -> float:
        """What one answer is worth: a finite number."""

    def marker(self, runtime: Runtime, mirror: str | None, rows: int) -> Marker:
        """`mark`, of each answer for itself."""
        return self._marks

    def _marks(self, problems: Sequence[Problem], answers: Sequence[Continuation]) -> list[float]:
        marks = []
        for problem, answer in zip(problems, answers, strict=True):
            try:
                marks.append(self.mark(problem, answer))
            except Exception as cause:
                told = f"fails with {type(cause).__name__}: {cause}, at"
                raise _failure(type(self).__name__, told, problem, answer) from cause
        return marks


_NUMBER = Defaults("task/reward/number")


@dataclass(frozen=True)
class NumberReward(RuleReward):
    """1 where an answer comes to the problem's number, else 0.

    Args:
        reading: `strict`: the number behind `####` counts; `flexible`: the last one of the answer.
    """

    reading: Reading = _NUMBER("reading")

    def mark(self, problem: Problem, answer: Continuation) -> float:
        """As in `RuleReward`."""
        from modern_llm.evaluation.metrics.numbers import same_number
        from modern_llm.evaluation.reranking import READINGS, reference_number

        return float(same_number(READINGS[self.reading](answer.text), reference_number(problem.solution)))


_FORMAT = Defaults("task/reward/format")


@dataclass(frozen=True)
class FormatReward(RuleReward):
    """1 where a regular expression is found in an answer, else 0.

    Args:
        pattern: the expression.
    """

    pattern: str = _FORMAT("pattern")

    def __post_init__(self) -> None:
        require(
            bool(self.pattern), "task.reward.pattern", self.pattern, "is found in every text", "Say what to look for"
        )
        require_expression("task.reward.pattern", self.pattern)

    def mark(self, problem: Problem, answer: Continuation) -> float:
        """As in `RuleReward`."""
        return float(re.search(self.pattern, answer.text) is not None)


_LENGTH = Defaults("task/reward/length")


@dataclass(frozen=True)
class LengthReward(RuleReward):
    """A penalty on long answers (Yu et al. 2025, arXiv 2503.14476, eq. 13): 0 up to a length, from there on falling on
    a line to -1. The paper counts tokens, this characters. An answer that was cut off at its limit has -1, as there.

    Args:
        free: characters without a penalty; the paper's L_max - L_cache.
        most: characters from which the penalty is whole; the paper's L_max.
    """

    free: int = _LENGTH("free")
    most: int = _LENGTH("most")

    def __post_init__(self) -> None:
        require(self.free >= 0, "task.reward.free", self.free, "must not be negative", "Use 0 or more")
        require(self.most > self.free, "task.reward.most", self.most, f"must exceed task.reward.free={self.free}",
                "Raise it")  # fmt: skip

    def mark(self, problem: Problem, answer: Continuation) -> float:
        """As in `RuleReward`."""
        if not answer.ended:
            return -1.0
        beyond = max(len(answer.text) - self.free, 0)
        return max(-beyond / (self.most - self.free), -1.0)


@dataclass(frozen=True)
class JudgeReward(Reward):
    """A probability by a trained judge: of a verifier, that the answer is right; of a reward model with reward r, that
    the answer is preferred to one with reward 0, 1 / (1 + exp(-r)) (Bradley and Terry 1952). 0 of an empty answer.

    Args:
        path: folder of a run of task=verifier or task=reward_model.
    """

    path: str

    def __post_init__(self) -> None:
        require_judge("task.reward.path", self.path)

    def marker(self, runtime: Runtime, mirror: str | None, rows: int) -> Marker:
        """As in `Reward`."""
        judge = load_judge(self.path, runtime, mirror)

        def marks(problems: Sequence[Problem], answers: Sequence[Continuation]) -> list[float]:
            questions, texts = [problem.question for problem in problems], [answer.text for answer in answers]
            return judge.probabilities(judge.score(questions, texts, rows)).tolist()

        return marks

    def known_problems(self) -> frozenset[str]:
        """As in `Reward`."""
        return known_problems(self.path)


@dataclass(frozen=True)
class WeightedSum(Reward):
    """Rewards added up.

    Args:
        rewards: by a name of your own.
        weights: factor of each; one that has none has 1.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.rewards), "task.reward.rewards", self.rewards, "names none",
                "Give name: reward, as in `/task/reward@rewards.right: number`")  # fmt: skip
        for name, weight in self.weights.items():
            key = f"task.reward.weights.{name}"
            require(name in self.rewards, key, weight, "is for no reward", f"Known: {', '.join(self.rewards)}")
            require(math.isfinite(weight), key, weight, "must be a finite number", "Change it")

    @property
    def part_names(self) -> tuple[str, ...]:
        """Names that the marks of each are logged under."""
        return tuple(f"reward/{name}" for name in self.rewards)

    def marker(self, runtime: Runtime, mirror: str | None, rows: int) -> Marker:
        """As in `Reward`."""
        each = [reward.marker(runtime, mirror, rows) for reward in self.rewards.values()]
        markers = dict(zip(self.part_names, each, strict=True))
        return SumMarker(markers, [self.weights.get(name, 1.0) for name in self.rewards])

    def known_problems(self) -> frozenset[str]:
        """As in `Reward`: those of any part."""
        return frozenset().union(*(reward.known_problems() for reward in self.rewards.values()))


@dataclass(frozen=True)
class SumMarker:
    """The marker of a weighted sum, which tells its parts apart.

    Args:
        markers: by the name that the marks of each are logged under, `reward/<name>`.
        weights: of each, in their order.
    """

    markers: Mapping[str, Marker]
    weights: Sequence[float]

    def __call__(self, problems: Sequence[Problem], answers: Sequence[Continuation]) -> list[float]:
        return self.total(self.parts(problems, answers))

    def parts(self, problems: Sequence[Problem], answers: Sequence[Continuation]) -> dict[str, list[float]]:
        """Marks by each, before they are weighed."""
        return {name: checked_marks(marker, problems, answers) for name, marker in self.markers.items()}

    def total(self, parts: Mapping[str, Sequence[float]]) -> list[float]:
        """What marks by each come to."""
        return [
            math.fsum(weight * mark for weight, mark in zip(self.weights, own, strict=True))
            for own in zip(*parts.values(), strict=True)
        ]


def part_names(marker: Marker) -> tuple[str, ...]:
    """Names that the parts of a sum are logged under; none of any other marker."""
    return tuple(marker.markers) if isinstance(marker, SumMarker) else ()


def marks_with_parts(
    marker: Marker, problems: Sequence[Problem], answers: Sequence[Continuation]
) -> tuple[list[float], dict[str, list[float]]]:
    """Marks as `checked_marks` gives them, and those by each part of a sum, before they are weighed.

    Raises:
        MarkError: as there.
    """
    if not isinstance(marker, SumMarker):
        return checked_marks(marker, problems, answers), {}
    parts = marker.parts(problems, answers)
    return marker.total(parts), parts


def checked_marks(marker: Marker, problems: Sequence[Problem], answers: Sequence[Continuation]) -> list[float]:
    """Marks of answers, one answer to each problem, each a finite number.

    Raises:
        MarkError: the marker fails, gives another number of marks than there are answers, or a mark that is no finite
            number.
    """
    if not answers:
        return []
    name = _name_of(marker)
    try:
        marks = list(marker(problems, answers))
    except MarkError:
        raise  # of a part of a sum, and named already
    except Exception as cause:
        from modern_llm.training.memory.exhausted import memory_ran_out

        if memory_ran_out(cause):
            raise  # the loop tells what to change
        told = f"fails with {type(cause).__name__}: {cause}, at {len(answers)} answers, of which the first is"
        raise _failure(name, told, problems[0], answers[0]) from cause
    if len(marks) != len(answers):
        told = f"gives {len(marks)} marks to {len(answers)} answers, of which the first is"
        raise _failure(name, told, problems[0], answers[0])
    checked = []
    for problem, answer, mark in zip(problems, answers, marks, strict=True):
        try:
            checked.append(float(mark))
        except (TypeError, ValueError):
            checked.append(math.nan)
        if not math.isfinite(checked[-1]):
            raise _failure(name, f"gives {mark!r}, which is no finite number, to", problem, answer)
    return checked


def _name_of(marker: Marker) -> str:
    """The class of the reward that a marker, a method or a function inside of one, is of."""
    owner = getattr(marker, "__self__", None)
    return type(owner).__name__ if owner is not None else getattr(marker, "__qualname__", repr(marker)).split(".")[0]


def _failure(name: str, told: str, problem: Problem, answer: Continuation) -> MarkError:
    return MarkError(
        f"task.reward: {name} {told} the answer {_shortened(answer.text)} to the problem "
        f"{_shortened(problem.question)}. Mend {name}, or choose another reward."
    )


def _shortened(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
