"""Data sets of inputs and answers: SST-2, SAMSum, DialogSum, GSM8K, and any other whose columns a YAML file names."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from modern_llm.checks import require
from modern_llm.data.rows import Part, choose_rows

if TYPE_CHECKING:
    from datasets import Dataset

Scoring = Literal["classification", "summaries", "numbers"]


@dataclass(frozen=True, slots=True)
class Example:
    """One row.

    Attributes:
        index: of the row in its split.
        fields: its columns as text.
        label: number of its label, or None where answers are free text.
        target: the answer alone, as the metrics compare it.
    """

    index: int
    fields: dict[str, str]
    label: int | None
    target: str


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
class SupervisedData:
    """A data set on the hub or in the mirror, and how its rows become text.

    Templates name columns in braces. The answer follows the prompt after one space. With `labels`, answers are label
    words, and the label column holds their numbers.

    Args:
        name, config: of the data set.
        text: template of what a classifier reads.
        prompt: template of what a decoder continues with the answer.
        source: template of what an encoder-decoder reads.
        target: template of the answer; ignored with `labels`.
        scoring: classification (accuracy, macro-F1), summaries (ROUGE) or numbers (GSM8K's exact match).
        instruction: what a prompt without training begins with; empty: nothing.
        labels: label words in the order of their numbers; empty: answers are free text.
        label_column: holds the number of the label.
        remove: regular expression cut out of every column; null: none.
        stop: strings that end a generated answer.
        max_new_tokens: longest answer that is generated.
        shot_separator: between the examples of a prompt.
        content_free: inputs without content, for calibration (Zhao et al. 2021, arXiv 2102.09690).
        evaluation_split: what is reported on; where the data has none, `validation` is taken, and said.
        held_out: examples kept from the training split, on which the best checkpoint is chosen: never on what is
            reported.
    """

    name: str
    prompt: str
    scoring: Scoring
    config: str | None = None
    text: str | None = None
    source: str | None = None
    target: str = ""
    instruction: str = ""
    labels: list[str] = field(default_factory=list)
    label_column: str = "label"
    remove: str | None = None
    stop: list[str] = field(default_factory=list)
    max_new_tokens: int = 128
    shot_separator: str = "\n\n"
    content_free: list[str] = field(default_factory=lambda: ["N/A", "[MASK]", ""])
    evaluation_split: Literal["validation", "test"] = "test"
    held_out: int = 200

    def __post_init__(self) -> None:
        for key in ("text", "prompt", "source"):
            if getattr(self, key) is not None:
                _require_template(f"task.data.{key}", getattr(self, key))
        if not self.labels:
            _require_template("task.data.target", self.target)
        require(len(self.labels) != 1 and len(set(self.labels)) == len(self.labels), "task.data.labels", self.labels,
                "must be two different words or more", "Use [] where answers are free text")  # fmt: skip
        require((self.scoring == "classification") == bool(self.labels), "task.data.scoring", self.scoring,
                "must be 'classification' with task.data.labels, and only then", "Change either")  # fmt: skip
        require(self.max_new_tokens >= 1, "task.data.max_new_tokens", self.max_new_tokens, "must be at least 1",
                "Raise it")  # fmt: skip
        require(self.held_out >= 1, "task.data.held_out", self.held_out, "must be at least 1", "Use 200")
        require("" not in self.stop, "task.data.stop", self.stop, "holds an empty text, which ends every answer",
                "Leave it out")  # fmt: skip
        if self.remove is not None:
            try:
                re.compile(self.remove)
            except re.error as cause:
                raise ValueError(f"task.data.remove={self.remove!r}: no regular expression ({cause}).") from cause

    def prompt_of(self, example: Example) -> str:
        """What a decoder continues."""
        return self.prompt.format(**example.fields)

    def text_of(self, example: Example) -> str:
        """What a classifier reads."""
        return (self.text or self.prompt).format(**example.fields)

    def source_of(self, example: Example) -> str:
        """What an encoder-decoder reads."""
        return (self.source or self.prompt).format(**example.fields)

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        templates = [self.prompt, self.text, self.source, None if self.labels else self.target]
        named = [name for template in templates if template for name in columns_of(template)]
        return list(dict.fromkeys([*named, *([self.label_column] if self.labels else [])]))

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
        from modern_llm.hub import MissingSplitError, find_dataset

        split = self.evaluation_split if part == "evaluation" else "train"
        try:
            rows = find_dataset(self.name, self.config, split, mirror)
        except MissingSplitError:
            if split != "test":
                raise
            split = "validation"
            rows = find_dataset(self.name, self.config, split, mirror)
        missing = [name for name in self.columns if name not in rows.column_names]
        if missing:
            raise ValueError(
                f"{self.name}, split {split!r}: has no column {missing[0]!r}. It has {', '.join(rows.column_names)}. "
                "Name them in the templates of task.data."
            )
        indices = self._indices(part, len(rows), limit, seed)
        examples = list(self._read(rows, split, indices))
        empty = len(indices) - len(examples)
        if not examples:
            raise ValueError(f"{self.name}, split {split!r}: is empty. Choose another split or data set.")
        return Examples(examples, split, empty, f"{rows._fingerprint} {part} {len(rows)} {self.held_out}")

    def _indices(self, part: Part, rows: int, limit: int | None, seed: int) -> list[int]:
        if part != "evaluation" and self.held_out >= rows:
            raise ValueError(
                f"task.data.held_out={self.held_out}: the training split of {self.name} has only {rows} rows. Lower it."
            )
        return choose_rows(self.name, rows, part, self.held_out, False, limit, seed)

    def _read(self, rows: Dataset, split: str, indices: list[int]) -> Iterator[Example]:
        inputs = [n for n in self.columns if n not in columns_of(self.target) and n != self.label_column]
        chosen = rows.select(indices) if len(indices) < len(rows) else rows
        for index, row in zip(indices, chosen, strict=True):
            fields = {name: self._clean(row[name]) for name in self.columns}
            label, target = None, ""
            if self.labels:
                label = row[self.label_column]
                if label in self.labels:
                    label = self.labels.index(label)
                if type(label) is not int or not 0 <= label < len(self.labels):
                    raise ValueError(
                        f"{self.name}, split {split!r}, row {index}: {self.label_column}={label!r} is none of the "
                        f"{len(self.labels)} labels {self.labels}. Name all labels in task.data.labels, or choose "
                        "a split with labels (task.data.evaluation_split)."
                    )
                target = self.labels[label]
            else:
                target = self.target.format(**fields).strip()
            # A row without input or answer teaches nothing and cannot be scored.
            if target and any(fields[name] for name in inputs):
                yield Example(index, fields, label, target)

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
