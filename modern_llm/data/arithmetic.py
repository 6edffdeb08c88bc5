"""Sums made on the spot, in the columns of every kind of data that alignment takes: for trying a pipeline without any
download, and for tests. Whoever learns them has learned to add small numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modern_llm.checks import require
from modern_llm.data.rows import Part, Row, Rows, choose_rows, gather_rows
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/rows/arithmetic")


@dataclass(frozen=True)
class Arithmetic:
    """Questions such as "What is 3 + 4?", each once.

    Args:
        kind: `instructions` (instruction, input, output), `preferences` (prompt, chosen, rejected: the right sum and
            a wrong one) or `solutions` (question, answer, correct: a right and a wrong one of every question).
        largest: largest number that is added.
        held_out: questions on which the best checkpoint is chosen, and as many again that are reported on.
    """

    kind: Literal["instructions", "preferences", "solutions"]
    largest: int = _DEFAULTS("largest")
    held_out: int = _DEFAULTS("held_out")

    def __post_init__(self) -> None:
        require(self.largest >= 1, "task.data.source.largest", self.largest, "must be at least 1", "Use 9")
        questions = (self.largest + 1) ** 2
        require(1 <= 2 * self.held_out < questions, "task.data.source.held_out", self.held_out,
                f"must be at least 1 and below half of the {questions} questions", "Lower it")  # fmt: skip

    @property
    def name(self) -> str:
        return f"arithmetic {self.kind}"

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """As in `RowSource`."""
        numbers = range(self.largest + 1)
        every = [row for a in numbers for b in numbers for row in self._rows(a, b)]
        each = 2 if self.kind == "solutions" else 1
        questions = choose_rows(self.name, len(every) // each, part, self.held_out, True, limit, seed)
        return gather_rows("made", every, [each * q + i for q in questions for i in range(each)])

    def _rows(self, a: int, b: int) -> list[Row]:
        question, right = f"What is {a} + {b}?", f"{a} + {b} = {a + b}\n#### {a + b}"
        off = a + b + 1 + (3 * a + 5 * b) % 4
        wrong = f"{a} + {b} = {off}\n#### {off}"
        if self.kind == "instructions":
            return [{"instruction": question, "input": "", "output": right}]
        if self.kind == "preferences":
            return [{"prompt": question, "chosen": right, "rejected": wrong}]
        return [
            {"question": question, "answer": right, "correct": True},
            {"question": question, "answer": wrong, "correct": False},
        ]
