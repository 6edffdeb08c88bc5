"""Which problems and which answers to them are read, and how. Imports no torch."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from modern_llm.checks import require, require_expression
from modern_llm.data.labelled import columns_of
from modern_llm.data.rows import RowSource
from modern_llm.defaults import Defaults

MOST_SAMPLES = 1000  # of a problem: the seeds of two problems must not meet
Reading = Literal["flexible", "strict"]
_QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}  # curly ones


def problem_id(question: str) -> str:
    """The same for a problem that is written with other quotes, capitals or spaces."""
    plain = unicodedata.normalize("NFKC", question.translate(_QUOTES)).casefold()
    return hashlib.sha256(" ".join(plain.split()).encode()).hexdigest()[:24]


def require_template(key: str, template: str, names: set[str]) -> None:
    """Refuse a template that names other columns than it should."""
    try:
        found = set(columns_of(template))
    except ValueError as cause:
        raise ValueError(f"{key}={template!r}: {cause}. Double the braces that stand for themselves.") from cause
    wanted = " and ".join(f"{{{name}}}" for name in sorted(names, reverse=True))
    require(found == names, key, template, f"must name {wanted}, and nothing else", "Put them into it")


_SOLUTION_TEXT = Defaults("task/verifier", "text")


@dataclass(frozen=True)
class SolutionText:
    """How a problem and an answer become the text that a verifier reads.

    Args:
        template: with {question} and {answer}.
        remove: regular expression cut out of answers, such as the calculator's notes of GSM8K; null: none.
    """

    template: str = _SOLUTION_TEXT("template")
    remove: str | None = _SOLUTION_TEXT("remove")

    def __post_init__(self) -> None:
        require_template("task.text.template", self.template, {"question", "answer"})
        if self.remove is not None:
            require_expression("task.text.remove", self.remove)

    def __call__(self, question: str, answer: str) -> str:
        """The text."""
        answer = re.sub(self.remove, "", answer) if self.remove is not None else answer
        return self.template.format(question=question.strip(), answer=answer.strip())


_SOLUTION_DATA = Defaults("task/data/solutions")


@dataclass(frozen=True)
class SolutionData:
    """Answers to problems, marked right or wrong.

    A problem is in one part alone, with all of its answers: `source.held_out` counts problems here, and whatever the
    splits of the source are, a problem that is reported on is not trained on.

    Args:
        source: where the rows are from.
        question_column, answer_column: of text.
        correct_column: true or false, or 1 or 0.
    """

    source: RowSource
    question_column: str = _SOLUTION_DATA("question_column")
    answer_column: str = _SOLUTION_DATA("answer_column")
    correct_column: str = _SOLUTION_DATA("correct_column")

    @property
    def columns(self) -> list[str]:
        """Columns that every row must have."""
        return [self.question_column, self.answer_column, self.correct_column]


_PROBLEM_DATA = Defaults("task/data/problems")


@dataclass(frozen=True)
class ProblemData:
    """Problems whose answer is a number, and how a model is asked for it.

    Args:
        source: where the rows are from.
        question_column: of text.
        answer_column: a number, or a solution in GSM8K's form, whose line `#### n` holds it.
        prompt: what a model continues; with {question}.
        chat_prompt: what a chat model is asked instead; with {question}.
        stop: strings that end an answer; a chat's turn ends by itself.
    """

    source: RowSource
    question_column: str = _PROBLEM_DATA("question_column")
    answer_column: str = _PROBLEM_DATA("answer_column")
    prompt: str = _PROBLEM_DATA("prompt")
    chat_prompt: str = _PROBLEM_DATA("chat_prompt")
    stop: list[str] = _PROBLEM_DATA("stop")

    def __post_init__(self) -> None:
        require_template("task.data.prompt", self.prompt, {"question"})
        require_template("task.data.chat_prompt", self.chat_prompt, {"question"})
        require("" not in self.stop, "task.data.stop", self.stop, "holds an empty text, which ends every answer",
                "Leave it out")  # fmt: skip

    @property
    def columns(self) -> list[str]:
        """Columns that every row must have."""
        return [self.question_column, self.answer_column]
