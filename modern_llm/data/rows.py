"""Rows of a data set, in three parts that never share one: from the hub or the mirror, or from files of your own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from modern_llm.checks import require

Part = Literal["train", "selection", "evaluation"]
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
        require(kept < count, "held_out", held_out, f"leaves nothing of the {count} rows of {source} to train on",
                "Lower it")  # fmt: skip
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


@dataclass(frozen=True)
class HubRows:
    """A data set of the hub or the mirror.

    Args:
        name, config: of the data set.
        evaluation_split: what is reported on; where the data has none, as many rows as `held_out` of the training
            split, which are not trained on.
        held_out: rows kept from the training split, on which the best checkpoint is chosen.
    """

    name: str
    config: str | None = None
    evaluation_split: Literal["validation", "test"] = "validation"
    held_out: int = 100

    def __post_init__(self) -> None:
        require(self.held_out >= 1, "task.data.source.held_out", self.held_out, "must be at least 1", "Use 100")

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """As in `RowSource`."""
        from modern_llm.hub import MissingSplitError, find_dataset

        train, inside = find_dataset(self.name, self.config, "train", mirror), False
        split, found = "train", train
        try:
            other = find_dataset(self.name, self.config, self.evaluation_split, mirror)
            if part == "evaluation":
                split, found = self.evaluation_split, other
        except MissingSplitError:
            inside = True
        indices = choose_rows(self.name, len(found), part, self.held_out, inside, limit, seed)
        rows = [dict(row) for row in found.select(indices)]
        return Rows(rows, indices, split, content_fingerprint(rows))


@dataclass(frozen=True)
class FileRows:
    """JSON-lines files of your own: one object a line.

    Args:
        train: the file that is trained on.
        evaluation: the file that is reported on; null: as many rows as `held_out` of `train`, not trained on.
        held_out: rows kept from training, on which the best checkpoint is chosen.
    """

    train: str
    evaluation: str | None = None
    held_out: int = 100

    def __post_init__(self) -> None:
        for key in ("train", "evaluation"):
            path = getattr(self, key)
            require(path is None or Path(path).expanduser().is_file(), f"task.data.source.{key}", path, "is no file",
                    "Give a JSON-lines file")  # fmt: skip
        require(self.held_out >= 1, "task.data.source.held_out", self.held_out, "must be at least 1", "Use 100")

    @property
    def name(self) -> str:
        return Path(self.train).name

    def rows(self, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0) -> Rows:
        """As in `RowSource`.

        Raises:
            ValueError: a line is no JSON object; the message names it.
        """
        inside = self.evaluation is None
        path = self.evaluation if part == "evaluation" and self.evaluation is not None else self.train
        every: list[Row] = []
        for number, line in enumerate(Path(path).expanduser().read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as cause:
                raise ValueError(f"{path}, line {number}: is no JSON ({cause}). Mend it, or leave it out.") from cause
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: is no JSON object. Mend it, or leave it out.")
            every.append(row)
        indices = choose_rows(path, len(every), part, self.held_out, inside, limit, seed)
        return gather_rows(Path(path).name, every, indices)
