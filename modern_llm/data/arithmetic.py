"""Sums made on the spot, as easy or as hard as one likes, in the columns of every kind of data that alignment takes:
for trying a pipeline without any download, for tests, and for learning from answers that can be checked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from modern_llm.checks import require
from modern_llm.data.rows import Part, Row, Rows, choose_rows, content_fingerprint
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/rows/arithmetic")
_ALL = 100_000  # questions that are asked without a sample, at most
_QUESTIONS_SEED = 21  # fixed: the same questions are drawn whatever the run's seed is, so that runs compare


@dataclass(frozen=True)
class Arithmetic:
    """Questions such as "What is 3 + 4 - 2?", each once, and their answers step by step: "3 + 4 = 7", "7 - 2 = 5",
    "#### 5". Products come first, as usual; what has equal rank is worked out from left to right.

    Every number from 0 to `largest` is equally likely at every place, and so is every operation: of numbers up to 999,
    nine in ten have three digits. A sample is drawn from all questions that there are, with a seed of its own.

    Args:
        kind: `instructions` (instruction, input, output), `preferences` (prompt, chosen, rejected: the right answer and
            one whose last result is wrong) or `solutions` (question, answer, correct: both answers to every question).
        terms: numbers in a question.
        operations: that join them, any of +, - and *.
        largest: largest number of a question; results may be larger, or below 0.
        questions: a sample of so many; null: all, up to 100,000.
        held_out: questions on which the best checkpoint is chosen, and as many again that are reported on.

    Raises:
        ValueError: settings without a question, or with other operations.
    """

    kind: Literal["instructions", "preferences", "solutions"]
    terms: int = _DEFAULTS("terms")
    operations: str = _DEFAULTS("operations")
    largest: int = _DEFAULTS("largest")
    questions: int | None = _DEFAULTS("questions")
    held_out: int = _DEFAULTS("held_out")

    def __post_init__(self) -> None:
        known = bool(self.operations) and len(set(self.operations)) == len(self.operations)
        known = known and set(self.operations) <= set("+-*")
        require(self.terms >= 2, "task.data.source.terms", self.terms, "must be at least 2", "Use 2")
        require(known, "task.data.source.operations", self.operations, "must be some of +, - and *, each once",
                "Use '+-'")  # fmt: skip
        require(self.largest >= 1, "task.data.source.largest", self.largest, "must be at least 1", "Use 9")
        every, asked = self._every, self.questions
        require(asked is not None or every <= _ALL, "task.data.source.questions", asked,
                f"stands for all {every:,} questions, which are more than {_ALL:,}",
                "Say how many are drawn, such as 20000")  # fmt: skip
        require(asked is None or asked <= every, "task.data.source.questions", asked,
                f"is more than the {every:,} questions that there are", "Lower it, or use null for all")  # fmt: skip
        count = self._count
        require(1 <= 2 * self.held_out < count, "task.data.source.held_out", self.held_out,
                f"must be at least 1 and below half of the {count} questions", "Lower it")  # fmt: skip

    @property
    def name(self) -> str:
        return f"arithmetic {self.kind}"

    @property
    def _every(self) -> int:
        """Questions that there are."""
        return (self.largest + 1) ** self.terms * len(self.operations) ** (self.terms - 1)

    @property
    def _count(self) -> int:
        """Questions that are asked."""
        return self._every if self.questions is None else self.questions

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """As in `RowSource`."""
        drawn = range(self._every) if self.questions is None else _sample(self._every, self.questions)
        chosen = choose_rows(self.name, self._count, part, self.held_out, True, limit, seed)
        rows = [row for place in chosen for row in self._rows(*self._question(drawn[place]))]
        each = 2 if self.kind == "solutions" else 1
        indices = [each * place + i for place in chosen for i in range(each)]
        return Rows(rows, indices, "made", content_fingerprint(rows))

    def _question(self, number: int) -> tuple[list[int], list[str]]:
        """Terms and operations of the question with this number, which has a digit for each of them."""
        terms, operations = [], []
        for _ in range(self.terms - 1):
            number, term = divmod(number, self.largest + 1)
            number, operation = divmod(number, len(self.operations))
            terms.append(term)
            operations.append(self.operations[operation])
        return [number, *reversed(terms)], operations

    def _rows(self, terms: list[int], operations: list[str]) -> list[Row]:
        asked = " ".join([str(terms[0]), *(f"{o} {t}" for o, t in zip(operations, terms[1:], strict=True))])
        question, (*before, (last, result)) = f"What is {asked}?", _steps(terms, operations)
        off = result + 1 + sum((2 * i + 3) * term for i, term in enumerate(terms)) % 4
        done = "".join(f"{step} = {value}\n" for step, value in before)
        right, wrong = (f"{done}{last} = {value}\n#### {value}" for value in (result, off))
        if self.kind == "instructions":
            return [{"instruction": question, "input": "", "output": right}]
        if self.kind == "preferences":
            return [{"prompt": question, "chosen": right, "rejected": wrong}]
        return [
            {"question": question, "answer": right, "correct": True},
            {"question": question, "answer": wrong, "correct": False},
        ]


def _steps(terms: list[int], operations: list[str]) -> list[tuple[str, int]]:
    """What is worked out one after another, as text, and each result."""
    left, waiting, steps = list(terms), list(operations), []
    while waiting:
        place = waiting.index("*") if "*" in waiting else 0
        operation, (a, b) = waiting.pop(place), left[place : place + 2]
        result = a + b if operation == "+" else a - b if operation == "-" else a * b
        steps.append((f"{a} {operation} {b}", result))
        left[place : place + 2] = [result]
    return steps


@lru_cache(maxsize=1)  # the parts of a data set are read one after another
def _sample(count: int, size: int) -> list[int]:
    """`size` different numbers below `count`, in ascending order; every such set is equally likely (Floyd's algorithm,
    Bentley and Floyd 1987), and no list of all numbers is made."""
    draws, chosen = random.Random(_QUESTIONS_SEED), set[int]()
    for most in range(count - size, count):
        number = draws.randrange(most + 1)
        chosen.add(most if number in chosen else number)
    return sorted(chosen)
