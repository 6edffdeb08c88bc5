"""A text of many files, such as FineWeb-Edu: read shard by shard, tokenised ahead of the training."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modern_llm.checks import require
from modern_llm.data.text.sources import Source, Split, file_content
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/data/shards")
_ROWS_AT_A_TIME = 1024


@dataclass(frozen=True)
class ShardedText:
    """Parquet files of a data set of the hub or the mirror, in the order of their names. No more of them are on this
    machine, or tokenised, than the training has come to.

    Args:
        name: of the data set.
        files: pattern of the files in it.
        text_column: column that holds the text.
        validation_shards: last files, which are kept from training for validation.
        workers: files that are tokenised at a time, ahead of the one that is trained on.
    """

    name: str
    files: str = _DEFAULTS("files")
    text_column: str = _DEFAULTS("text_column")
    validation_shards: int = _DEFAULTS("validation_shards")
    workers: int = _DEFAULTS("workers")

    newlines_are_words = False

    def __post_init__(self) -> None:
        for key in ("validation_shards", "workers"):
            require(getattr(self, key) >= 1, f"task.data.{key}", getattr(self, key), "must be at least 1", "Use 1")

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation")

    def shards(self, split: Split, mirror: str | None) -> list[Shard]:
        """The files of a split.

        Raises:
            FileNotFoundError, ValueError: the data set is nowhere, or too few of its files match.
        """
        from modern_llm.hub import dataset_files

        every = [Shard(self, f) for f in dataset_files(self.name, mirror) if fnmatch.fnmatchcase(f, self.files)]
        require(len(every) > self.validation_shards, "task.data.files", self.files,
                f"matches {len(every)} files of {self.name}, and {self.validation_shards} are kept for validation",
                "Use a wider pattern")  # fmt: skip
        return every[: -self.validation_shards] if split == "train" else every[-self.validation_shards :]

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        shards = self.shards(split, mirror)
        # Of those to train on, names alone: each has a fingerprint of its own, and all of them need not be here yet.
        told = [shard.file if split == "train" else shard.fingerprint("train", mirror) for shard in shards]
        return "shards " + hashlib.sha256(f"{self.name} {self.text_column} {split} {told}".encode()).hexdigest()

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        for shard in self.shards(split, mirror):
            yield from shard.documents(split, mirror)


@dataclass(frozen=True)
class Shard(Source):
    """One file as a text of its own.

    Args:
        of: the data set.
        file: its path there.
    """

    of: ShardedText
    file: str

    newlines_are_words = False

    def splits(self) -> tuple[Split, ...]:
        return ("train",)

    def path(self, mirror: str | None) -> Path:
        """The file on this machine, fetched where it is not here yet."""
        from modern_llm.hub import dataset_file

        return dataset_file(self.of.name, self.file, mirror)

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        return f"shard {self.of.text_column} {file_content(self.path(mirror)).hex()}"

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        import pyarrow.parquet as pq

        table = pq.ParquetFile(self.path(mirror))
        if self.of.text_column not in table.schema_arrow.names:
            raise ValueError(
                f"task.data.text_column={self.of.text_column!r}: {self.file} has the columns "
                f"{', '.join(table.schema_arrow.names)}. Name one of them."
            )
        for rows in table.iter_batches(_ROWS_AT_A_TIME, columns=[self.of.text_column]):
            for text in rows.column(0).to_pylist():
                if text and text.strip():
                    yield text
