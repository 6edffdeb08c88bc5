"""Data sets of inputs and answers: SST-2, SAMSum, DialogSum, GSM8K, and any other whose columns a YAML file names."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from modern_llm.checks import require, require_expression
from modern_llm.data.rows import Part, Rows, RowSource, require_columns


@dataclass(frozen=True, slots=True)
class Example:
    """One row.

    Attributes:
        index: of the row in its split.
        fields: its columns as text.
        label: number of its label, or None where answers are free text.
        target: the answer alone, as the metrics compare it.
        choices: answers among which it stands, `label` being its number; empty where there are none of its own.
    """

    index: int
    fields: dict[str, str]
    label: int | None
    target: str
    choices: tuple[str, ...] = ()


def columns_of(template: str) -> list[str]:
    """Names in braces."""
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def _require_template(key: str, template: str) -> None:
    try:
        names = columns_of(template)
    except ValueError as cause:
        raise ValueError(f"{key}={template!r}: {cause}. Double the braces that stand for themselves.") from cause
    require(all(names) and bool(names), key, template, "names no column", "Put columns in braces, such as {sentence}")


@dataclass(frozen=True)
class LabelledData:
    """Rows of inputs and answers, and how they become text.

    Templates name columns in braces. The answer follows the prompt after one space. With `labels`, answers are label
    words, and the label column holds them, or their numbers. With `choices_column`, every row has answers of its own to
    choose among, and the label column says which is right.

    Args:
        source: where the rows are from.
        text: template of what a classifier reads; null: the prompt.
        prompt: template of what a decoder continues with the answer.
        encoder_text: template of what an encoder-decoder reads; null: the prompt.
        target: template of the answer; ignored with `labels`.
        metrics: what answers are scored by, names of `evaluation/metrics/registry.py`; the first is the objective.
        instruction: what a prompt without training begins with; empty: nothing.
        labels: label words in the order of their numbers; empty: answers are free text.
        label_column: holds the label.
        choices_column: holds a list of answers, as HellaSwag's `endings`, or two lists `text` and `label`, as ARC's
            `choices`; in a template it stands for lines `A. …`. The label is then the number of the right one, from 0,
            its letter or its text. null: rows have no choices of their own.
        remove: regular expression cut out of every column; null: none.
        stop: strings that end a generated answer.
        max_new_tokens: longest answer that is generated.
        shot_separator: between the examples of a prompt.
        content_free: inputs without content, for calibration (Zhao et al. 2021, arXiv 2102.09690).
    """

    source: RowSource
    text: str | None
    prompt: str
    encoder_text: str | None
    target: str
    metrics: list[str]
    instruction: str
    labels: list[str]
    label_column: str
    choices_column: str | None
    remove: str | None
    stop: list[str]
    max_new_tokens: int
    shot_separator: str
    content_free: list[str]

    def __post_init__(self) -> None:
        for key in ("text", "prompt", "encoder_text"):
            if getattr(self, key) is not None:
                _require_template(f"task.data.{key}", getattr(self, key))
        if not self.labels and self.choices_column is None:
            _require_template("task.data.target", self.target)
        require(not self.labels or self.choices_column is None, "task.data.choices_column", self.choices_column,
                f"says that rows have answers of their own, and task.data.labels={self.labels} that all have the same",
                "Use one of them")  # fmt: skip
        require(len(self.labels) != 1 and len(set(self.labels)) == len(self.labels), "task.data.labels", self.labels,
                "must be two different words or more", "Use [] where answers are free text")  # fmt: skip
        require(bool(self.metrics), "task.data.metrics", self.metrics, "names none", "Use [accuracy] or [exact_match]")
        require(self.max_new_tokens >= 1, "task.data.max_new_tokens", self.max_new_tokens, "must be at least 1",
                "Raise it")  # fmt: skip
        require("" not in self.stop, "task.data.stop", self.stop, "holds an empty text, which ends every answer",
                "Leave it out")  # fmt: skip
        if self.remove is not None:
            require_expression("task.data.remove", self.remove)

    @property
    def name(self) -> str:
        """Of the rows, for messages and the record."""
        return self.source.name

    def prompt_of(self, example: Example) -> str:
        """What a decoder continues."""
        return self.prompt.format(**example.fields)

    def text_of(self, example: Example) -> str:
        """What a classifier reads."""
        return (self.text or self.prompt).format(**example.fields)

    def encoder_text_of(self, example: Example) -> str:
        """What an encoder-decoder reads."""
        return (self.encoder_text or self.prompt).format(**example.fields)

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        given = bool(self.labels) or self.choices_column is not None
        read = self.text if self.labels else None  # only labels have a classifier
        templates = [self.prompt, read, self.encoder_text, None if given else self.target]
        named = [name for template in templates if template for name in columns_of(template)]
        answers = [self.label_column] if given else []
        return list(dict.fromkeys([*named, *answers, *([self.choices_column] if self.choices_column else [])]))

    def without_content(self, filler: str) -> Example:
        """An example whose every input says nothing."""
        return Example(-1, dict.fromkeys(self.columns, filler), None, "")

    def examples(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Examples:
        """Read a part.

        Args:
            part: `train` without the held-out examples; `selection`, those; `evaluation`, the reported split.
            mirror: root of the mirror.
            limit: a sample of so many, drawn by `seed`; None: all.

        Raises:
            ValueError: a column is missing, a label is unknown, or there is nothing to read; the message names it.
        """
        found = self.source.rows(part, mirror, limit, seed)
        require_columns(self.name, found, self.columns)
        examples = list(self._read(found))
        empty = len(found.rows) - len(examples)
        if not examples:
            raise ValueError(
                f"{self.name}, split {found.split!r}: no row has both an input and an answer. Check the columns that "
                "task.data names."
            )
        return Examples(examples, found.split, empty, found.fingerprint)

    def _read(self, found: Rows) -> Iterator[Example]:
        answers = (*columns_of(self.target), self.label_column, self.choices_column)
        inputs = [name for name in self.columns if name not in answers]
        for index, row in zip(found.indices, found.rows, strict=True):
            fields = {name: self._clean(row[name]) for name in self.columns}
            choices: tuple[str, ...] = ()
            if self.choices_column is not None:
                names, choices = self._choices(row[self.choices_column], found.split, index)
                label = self._choice(row[self.label_column], names, choices, found.split, index)
                fields[self.choices_column] = "\n".join(f"{n}. {text}" for n, text in zip(names, choices, strict=True))
                target = choices[label]
            elif self.labels:
                label = self._label(row[self.label_column], found.split, index)
                target = self.labels[label]
            else:
                label, target = None, self.target.format(**fields).strip()
            # A row without input or answer teaches nothing and cannot be scored.
            if target and any(fields[name] for name in inputs):
                yield Example(index, fields, label, target, choices)

    def _label(self, value: Any, split: str, index: int) -> int:
        """Number of a label that is given as its word, its number, true or false; in a text file as text."""
        word = value.strip() if isinstance(value, str) else value
        if word in self.labels:
            return self.labels.index(word)
        number = int(word) if isinstance(word, bool) or (isinstance(word, str) and word.isdecimal()) else word
        if type(number) is int and 0 <= number < len(self.labels):
            return number
        raise ValueError(
            f"{self.name}, split {split!r}, row {index}: {self.label_column}={value!r} is none of the "
            f"{len(self.labels)} labels {self.labels}. Name all labels in task.data.labels, or choose "
            "a split with labels (task.data.source.evaluation_split)."
        )

    def _choices(self, value: Any, split: str, index: int) -> tuple[list[str], tuple[str, ...]]:
        """Names and texts of a row's choices; they are called A, B and so on where the row does not call them."""
        texts = value.get("text") if isinstance(value, dict) else value
        names = value.get("label") if isinstance(value, dict) else None
        if not isinstance(texts, list | tuple) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"{self.name}, split {split!r}, row {index}: {self.choices_column}={value!r} is no list of two texts "
                "or more. Name the column of the choices in task.data.choices_column."
            )
        letters = list(string.ascii_uppercase[: len(texts)]) if names is None else [str(name) for name in names]
        return letters, tuple(self._clean(text) for text in texts)

    def _choice(self, value: Any, names: list[str], choices: tuple[str, ...], split: str, index: int) -> int:
        """Number of the right choice, which is given as its name, its number or its text."""
        word = str(value).strip()
        for known in (names, list(map(str, range(len(choices)))), list(choices)):
            if word in known:
                return known.index(word)
        raise ValueError(
            f"{self.name}, split {split!r}, row {index}: {self.label_column}={value!r} is none of the choices "
            f"{', '.join(names)}, nor a number from 0 to {len(choices) - 1}. Name the column of the right one in "
            "task.data.label_column, or choose a split with labels (task.data.source.evaluation_split)."
        )

    def _clean(self, value: Any) -> str:
        text = "" if value is None else str(value).replace("\r\n", "\n")
        return (re.sub(self.remove, "", text) if self.remove else text).strip()


class Examples(NamedTuple):
    """A part of a data set.

    Attributes:
        rows: its examples.
        split: where they are from.
        empty: rows left out because input or answer is empty.
        fingerprint: changes when the data does.
    """

    rows: list[Example]
    split: str
    empty: int
    fingerprint: str
