"""Answers to problems, marked right or wrong, in three parts that share no problem; and the texts of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modern_llm.data.batches import Encoded
from modern_llm.data.rows import (
    PARTS,
    Part,
    Row,
    Rows,
    choose_rows,
    content_fingerprint,
    draw_rows,
    require_columns,
    text_of,
)
from modern_llm.data.solutions.settings import SolutionData, SolutionText, problem_id
from modern_llm.data.text.sources import Split
from modern_llm.data.text.tokenizers import Tokenizer

LABELS = ["wrong", "right"]


@dataclass(frozen=True, slots=True)
class Solution:
    """One answer to a problem.

    Attributes:
        index: of the row in its split.
        question, answer: texts.
        correct: whether the answer is right.
        problem: the same for all answers to one problem.
    """

    index: int
    question: str
    answer: str
    correct: bool
    problem: str


class Solutions(NamedTuple):
    """A part of the data.

    Attributes:
        rows: its answers.
        skipped: reason -> how many were left out.
        split: where they are from.
        fingerprint: of their content.
        known: problems that were left out, because a verifier knows them.
    """

    rows: list[Solution]
    skipped: dict[str, int]
    split: str
    fingerprint: str
    known: int = 0

    @property
    def problems(self) -> list[str]:
        """Every problem once, in the order of the rows."""
        return list(dict.fromkeys(row.problem for row in self.rows))


def read_solutions(
    data: SolutionData,
    mirror: str | None,
    max_train_problems: int | None = None,
    max_evaluation_problems: int | None = None,
    seed: int = 0,
    *,
    wanted: Sequence[Part] = PARTS,
    known: frozenset[str] = frozenset(),
) -> dict[Part, Solutions]:
    """Parts, cut by problems and not by rows.

    Where the source has an evaluation split of its own, its problems are left out of the others, and counted; else
    as many problems as are held out to choose the checkpoint on are held out to report on.

    Args:
        data: where the rows are, and how they are read.
        mirror: root of the mirror.
        max_train_problems, max_evaluation_problems: samples drawn by `seed`; None: all.
        wanted: the parts.
        known: `problem_id` of problems that are left out of them, before a sample is drawn.

    Raises:
        ValueError: a missing column, a mark that is neither true nor false, too few problems, or a part with right
            or wrong answers alone, or with known problems alone; the message says where.
    """
    given = {part: data.source.rows(part, mirror) for part in PARTS}
    evaluation = given["evaluation"]
    pool, published = [given["train"], given["selection"]], [evaluation]
    # Parts of one split share no row; two files of one name share numbers of rows.
    inside = evaluation.split == pool[0].split and not {i for r in pool for i in r.indices} & set(evaluation.indices)
    if inside:
        pool, published = [*pool, evaluation], []
    rows, skipped = _read(data, pool)
    reported, skipped_there = _read(data, published)
    published_problems = {row.problem for row in reported}
    straddling = sum(row.problem in published_problems for row in rows)
    if straddling:
        skipped["of a problem that is reported on"] += straddling
    rows = [row for row in rows if row.problem not in published_problems]
    problems, limits = _problems(rows), {"train": max_train_problems, "evaluation": max_evaluation_problems}
    name, held_out = f"the problems of {data.source.name}", data.source.held_out

    def chosen(part: Part) -> Solutions:
        every, where, left_out, split = rows, problems, skipped, given["train"].split
        if part == "evaluation" and not inside:
            every, where, left_out, split = reported, _problems(reported), skipped_there, evaluation.split
        places = choose_rows(name, len(where), part, held_out, inside, None, seed)
        new = [place for place in places if where[place] not in known]
        if places and not new:
            raise ValueError(
                f"{data.source.name}: the verifier was trained or calibrated on all of the {len(places)} problems of "
                f"the {part} part, so that its figures would flatter. Choose other answers (task/data)."
            )
        drawn = {where[place] for place in draw_rows(new, limits.get(part), seed)}
        taken = [row for row in every if row.problem in drawn]
        content = [[r.question, r.answer, r.correct] for r in taken]
        # What was left out before the parts were cut is told once, where it would have been learned.
        told = {} if part == "selection" or (part == "evaluation" and inside) else dict(left_out)
        return Solutions(taken, told, split, content_fingerprint(content), len(places) - len(new))

    parts = {part: chosen(part) for part in wanted}
    for part, solutions in parts.items():
        require_both_marks(data.source.name, part, [row.correct for row in solutions.rows])
    return parts


def require_both_marks(name: str, part: Part, marks: Sequence[bool]) -> None:
    """Refuse a part from which nothing can be learned or told.

    Raises:
        ValueError: all answers are right, or all are wrong.
    """
    if len(set(marks)) < 2:
        kind = f"only {'right' if marks[0] else 'wrong'} answers" if marks else "no answers"
        raise ValueError(
            f"{name}: the {part} part has {kind} ({len(marks)} rows), and a verifier tells right from wrong. "
            "Use more problems, raise task.data.source.held_out, or sample from another model."
        )


def _problems(rows: Sequence[Solution]) -> list[str]:
    """Every problem once, in the order of the rows."""
    return list(dict.fromkeys(row.problem for row in rows))


def _read(data: SolutionData, parts: Sequence[Rows]) -> tuple[list[Solution], Counter[str]]:
    """Rows of parts of one split in their order; those without a question or an answer are left out, and counted."""
    read, skipped = [], Counter[str]()
    for part in parts:
        require_columns(data.source.name, part, data.columns)
        for index, row in zip(part.indices, part.rows, strict=True):
            where = f"{data.source.name}, split {part.split!r}, example {index}"
            question, answer = (text_of(_value(where, row, key)) for key in data.columns[:2])
            correct = _value(where, row, data.correct_column)
            if correct not in (True, False):
                raise ValueError(
                    f"{where}: {data.correct_column}={correct!r} is neither true nor false. Mend it, leave it out, or "
                    "name another column in task.data.correct_column."
                )
            if question and answer:
                read.append(Solution(index, question, answer, bool(correct), problem_id(question)))
            else:
                skipped["without a question or an answer"] += 1
    return sorted(read, key=lambda row: row.index), skipped


def _value(where: str, row: Row, column: str) -> object:
    if column not in row:
        raise ValueError(f"{where}: has no {column!r}. Mend it, or leave it out.")
    return row[column]


class SolutionTexts:
    """The texts that a tokenizer is trained on, as a source of documents.

    Args:
        texts: of the training part.
        content: their fingerprint.
    """

    newlines_are_words = False

    def __init__(self, texts: list[str], content: str) -> None:
        self.texts, self.content = texts, content

    def splits(self) -> tuple[Split, ...]:
        return ("train",)

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        return self.content

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        return iter(self.texts)


class SolutionWriter:
    """Problem and answer as ids, in training and at inference alike. The end of text follows: a verifier with its head
    on the last token reads its judgement there.

    Args:
        text: the template.
        tokenizer: of the model.
        start_ids: what every text begins with.
        max_tokens: longest text.

    Attributes:
        truncated: texts so far that had to be shortened.
    """

    def __init__(self, text: SolutionText, tokenizer: Tokenizer, start_ids: list[int], max_tokens: int) -> None:
        self.text, self.tokenizer, self.start_ids, self.max_tokens = text, tokenizer, start_ids, max_tokens
        self.truncated = 0

    def ids(self, questions: Sequence[str], answers: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, whatever their length."""
        texts = [self.text(question, answer) for question, answer in zip(questions, answers, strict=True)]
        return [[*self.start_ids, *ids, self.tokenizer.eos_id] for ids in self.tokenizer.encode_batch(texts)]

    def shortened(self, ids: list[int]) -> list[int]:
        """Ids of at most `max_tokens`: the beginning goes, because the answer stands at the end."""
        if len(ids) <= self.max_tokens:
            return ids
        self.truncated += 1
        return [*self.start_ids, *ids[len(self.start_ids) - self.max_tokens :]]

    def encode(self, name: str, part: Part, solutions: Solutions) -> tuple[list[Encoded], Solutions]:
        """Ids with labels, and their rows; texts that are too long are left out, and counted.

        Raises:
            ValueError: what is left holds right or wrong answers alone.
        """
        rows = solutions.rows
        every = self.ids([row.question for row in rows], [row.answer for row in rows])
        fits = [len(ids) <= self.max_tokens for ids in every]
        kept = [row for row, fit in zip(rows, fits, strict=True) if fit]
        items = [
            Encoded(row.index, ids, [], int(row.correct))
            for row, ids, fit in zip(rows, every, fits, strict=True)
            if fit
        ]
        skipped = dict(solutions.skipped)
        if len(kept) < len(rows):
            skipped[f"longer than {self.max_tokens} tokens"] = len(rows) - len(kept)
        require_both_marks(
            f"{name}, without texts longer than {self.max_tokens} tokens", part, [r.correct for r in kept]
        )
        return items, solutions._replace(rows=kept, skipped=skipped)
