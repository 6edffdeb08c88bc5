"""Rows of a data set, in three parts that never share one: from the hub or the mirror, or from files of your own."""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TextIO

from modern_llm.checks import require
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from datasets import Dataset

Part = Literal["train", "selection", "evaluation"]
PARTS: tuple[Part, ...] = ("train", "selection", "evaluation")
Row = dict[str, Any]
_HELD_OUT_SEED = 20  # fixed: the same rows are held out whatever the run's seed is, so that runs compare


class Rows(NamedTuple):
    """A part of a data set.

    Attributes:
        rows: column -> value, of each.
        indices: of the rows in their split.
        split: where they are from.
        fingerprint: of their content.
    """

    rows: list[Row]
    indices: list[int]
    split: str
    fingerprint: str


class RowSource(Protocol):
    """Where rows come from."""

    @property
    def name(self) -> str:
        """For messages and the record."""

    @property
    def held_out(self) -> int:
        """Rows on which the best checkpoint is chosen; of answers to problems, the problems."""

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """Read a part.

        Args:
            part: `train`; `selection`, to choose the best checkpoint on; `evaluation`, to report on.
            mirror: root of the mirror.
            limit: a sample of so many, drawn by `seed`; None: all.
        """


def content_fingerprint(content: Any) -> str:
    """Changes when anything in JSON-like content does."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def choose_rows(
    source: str, count: int, part: Part, held_out: int, evaluation_inside: bool, limit: int | None, seed: int
) -> list[int]:
    """Indices of a part among the `count` rows of a split.

    Args:
        source: for the message.
        count: rows of the split.
        part: which part.
        held_out: rows kept from training, to choose the best checkpoint on.
        evaluation_inside: the evaluation part is cut from this split too, as many rows again.
        limit, seed: as in `RowSource.rows`.

    Raises:
        ValueError: nothing would be left to train on.
    """
    import numpy as np

    kept = held_out * (2 if evaluation_inside else 1)
    if part != "evaluation" or evaluation_inside:
        require(
            kept < count,
            "task.data.source.held_out",
            held_out,
            f"leaves nothing of the {count} rows of {source} to train on",
            "Lower it",
        )
        order = np.random.Generator(np.random.Philox(_HELD_OUT_SEED)).permutation(count)
        parts = {"selection": order[:held_out], "evaluation": order[held_out:kept], "train": np.sort(order[kept:])}
        chosen = parts[part]
    else:
        chosen = np.arange(count)
    return draw_rows(chosen.tolist(), limit, seed)


def draw_rows(indices: list[int], limit: int | None, seed: int) -> list[int]:
    """A sample in ascending order, drawn by the seed; all of them as they are where `limit` is None or not reached."""
    if limit is None or limit >= len(indices):
        return indices
    import numpy as np

    random = np.random.Generator(np.random.Philox(key=[seed, 1]))
    return np.sort(random.choice(indices, limit, replace=False)).tolist()


def gather_rows(split: str, every: list[Row], indices: list[int]) -> Rows:
    """Chosen rows with the fingerprint of their content."""
    rows = [every[i] for i in indices]
    return Rows(rows, indices, split, content_fingerprint(rows))


def text_of(value: Any) -> str:
    """A cell as text; empty for None alone, because a zero is an answer."""
    return "" if value is None else str(value).strip()


def require_columns(source: str, rows: Rows, columns: list[str]) -> None:
    """Refuse rows without a column that is read.

    Raises:
        ValueError: there are no rows, or a column is missing; the message names those that there are.
    """
    if not rows.rows:
        raise ValueError(f"{source}, split {rows.split!r}: is empty. Choose another split or data set.")
    missing = [name for name in columns if name not in rows.rows[0]]
    if missing:
        raise ValueError(
            f"{source}, split {rows.split!r}: has no column {missing[0]!r}. It has {', '.join(rows.rows[0])}. "
            "Name them in task.data."
        )


class ReadsRows(Protocol):
    """Settings of data: a source, and the columns of it that are read."""

    @property
    def source(self) -> RowSource: ...

    @property
    def columns(self) -> list[str]: ...


def look_at(data: ReadsRows, mirror: str | None) -> None:
    """Read one row of every part, so that data that are missing or have other columns are told of before a model is
    loaded.

    Raises:
        FileNotFoundError, ValueError: as in `RowSource.rows` and `require_columns`.
    """
    for part in PARTS:
        require_columns(data.source.name, data.source.rows(part, mirror, 1), data.columns)


_HUB_ROWS = Defaults("task/rows/hub")


@dataclass(frozen=True)
class HubRows:
    """A data set of the hub or the mirror.

    Args:
        name, config: of the data set.
        evaluation_split: what is reported on. Where the data has no test split, validation is taken; where it has none
            either, as many rows as `held_out` of the training split, which are not trained on.
        held_out: rows kept from the training split, on which the best checkpoint is chosen.
    """

    name: str
    config: str | None = _HUB_ROWS("config")
    evaluation_split: Literal["validation", "test"] = _HUB_ROWS("evaluation_split")
    held_out: int = _HUB_ROWS("held_out")

    def __post_init__(self) -> None:
        require(self.held_out >= 1, "task.data.source.held_out", self.held_out, "must be at least 1", "Use 100")

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """As in `RowSource`."""
        from modern_llm.hub import find_dataset

        reported = self._reported(mirror)
        if part == "evaluation" and reported is not None:
            split, found = reported
        else:
            split, found = "train", find_dataset(self.name, self.config, "train", mirror)
        inside = reported is None
        indices = choose_rows(self.name, len(found), part, self.held_out, inside, limit, seed)
        chosen = found.select(indices) if len(indices) < len(found) else found
        rows = [dict(row) for row in chosen]
        return Rows(rows, indices, split, content_fingerprint(rows))

    def _reported(self, mirror: str | None) -> tuple[str, Dataset] | None:
        """The split that is reported on, and its name; None where the data has none."""
        from modern_llm.hub import MissingSplitError, find_dataset

        for split in ("test", "validation") if self.evaluation_split == "test" else ("validation",):
            try:
                return split, find_dataset(self.name, self.config, split, mirror)
            except MissingSplitError:
                continue
        return None


_FILE_ROWS = Defaults("task/rows/files")


@dataclass(frozen=True)
class FileRows:
    """Files of your own: JSON lines, one object a line, or a table with a header (`.csv`, `.tsv`).

    Args:
        train: the file that is trained on.
        evaluation: the file that is reported on; null: as many rows as `held_out` of `train`, not trained on.
        held_out: rows kept from training, on which the best checkpoint is chosen.
    """

    train: str
    evaluation: str | None = _FILE_ROWS("evaluation")
    held_out: int = _FILE_ROWS("held_out")

    def __post_init__(self) -> None:
        for key in ("train", "evaluation"):
            path = getattr(self, key)
            require(path is None or Path(path).expanduser().is_file(), f"task.data.source.{key}", path, "is no file",
                    "Give a file of JSON lines, or a .csv or .tsv file with a header")  # fmt: skip
        require(self.held_out >= 1, "task.data.source.held_out", self.held_out, "must be at least 1", "Use 100")

    @property
    def name(self) -> str:
        return Path(self.train).name

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """As in `RowSource`.

        Raises:
            ValueError: a line is no JSON object, or no row of the table; the message names it.
        """
        inside = self.evaluation is None
        path = Path(self.evaluation if part == "evaluation" and self.evaluation is not None else self.train)
        every = read_file(path.expanduser())
        indices = choose_rows(str(path), len(every), part, self.held_out, inside, limit, seed)
        return gather_rows(path.name, every, indices)


def read_file(path: Path) -> list[Row]:
    """Rows of a file of JSON lines, or of a table with a header where the name ends in `.csv` or `.tsv`.

    Raises:
        ValueError: no UTF-8, or a line that is no row; the message names it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in _DELIMITERS:
                return _table_rows(path, file)
            return _json_rows(path, file)
    except UnicodeDecodeError as cause:
        raise ValueError(f"{path}: is no UTF-8 text ({cause}). Save it as UTF-8.") from cause


_DELIMITERS = {".csv": ",", ".tsv": "\t"}


def _json_rows(path: Path, file: TextIO) -> list[Row]:
    rows: list[Row] = []
    # A file's lines end at line feeds alone; a JSON text may hold every other character that splits a text into lines.
    for number, line in enumerate(file.read().split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as cause:
            raise ValueError(f"{path}, line {number}: is no JSON ({cause}). Mend it, or leave it out.") from cause
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: is no JSON object. Mend it, or leave it out.")
        rows.append(row)
    return rows


def _table_rows(path: Path, file: TextIO) -> list[Row]:
    reader = csv.DictReader(file, delimiter=_DELIMITERS[path.suffix.lower()], strict=True)
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: has another number of cells than the header, which names "
                    f"{', '.join(reader.fieldnames or [])}. Put cells that hold the delimiter between quotes."
                )
            rows.append(dict(row))
    except csv.Error as cause:
        raise ValueError(f"{path}, line {reader.line_num}: is no row of a table ({cause}). Mend it.") from cause
    return rows
