"""Where text comes from: the embedded default, the hub (mirror first), the user's own files.

A source yields documents of one split as strings, one at a time, so that memory stays flat however large the corpus
is, and has a fingerprint of its content, by which the token cache knows it. A new data set on the hub is one YAML
file; a new kind of source is one class here. Imports nothing heavy.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

from modern_llm.checks import require
from modern_llm.defaults import Defaults

Split = Literal["train", "validation", "test"]


class Source(Protocol):
    """A corpus in splits."""

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        """The documents of a split, in a fixed order."""

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        """Changes when the content of the split changes."""

    def splits(self) -> tuple[Split, ...]:
        """The splits that there are."""

    @property
    def newlines_are_words(self) -> bool:
        """Whether word-level figures count the end of each line as a word."""


def _in_validation(key: str, percent: int) -> bool:
    """A choice by hash, so that it depends on the document and on nothing around it."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < percent


_PYTHON_DOCS = Defaults("task/data/python_docs")


@dataclass(frozen=True)
class PythonDocs:
    """English text that ships with CPython: the language reference topics of `pydoc` and the docstrings of the
    standard library, one document per topic and per module.

    Args:
        validation_percent: share of the documents kept for validation, chosen by hash.
    """

    validation_percent: int = _PYTHON_DOCS("validation_percent")

    def __post_init__(self) -> None:
        require(1 <= self.validation_percent <= 50, "task.data.validation_percent", self.validation_percent,
                "must lie between 1 and 50", "Use 8")  # fmt: skip

    newlines_are_words = False

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation")

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        return f"python_docs {sys.version} {self.validation_percent} {split}"

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        seen = set()  # some topics have several names, and some modules repeat another's docstrings
        # The library is parsed when all topics have been taken: the first document is there at once.
        for text in chain.from_iterable(part() for part in (_topics, _library)):
            wanted = _in_validation(text, self.validation_percent) == (split == "validation")
            if wanted and len(text) > 200 and text not in seen:
                seen.add(text)
                yield text


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [text.strip() for text in topics.values()]


@cache
def _library() -> list[str]:
    """The docstrings of each module of the standard library."""
    texts = []
    library = Path(sysconfig.get_paths()["stdlib"])
    # Tests, bundled wheels and IDLE are not prose about the library.
    left_out = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3", "turtledemo", "ensurepip"}
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).with_suffix("").parts
        if not left_out & set(parts):
            texts.append("\n\n".join(_docstrings(path.read_bytes(), ".".join(parts).removesuffix(".__init__"))))
    return texts


def _docstrings(source: bytes, module: str) -> Iterator[str]:
    """Docstrings of a module and of its classes and functions, each under its name."""
    stack: list[tuple[str, ast.AST]] = [(module, ast.parse(source))]
    while stack:
        name, node = stack.pop()
        assert isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        doc = ast.get_docstring(node)
        if doc and len(doc) > 40:
            yield f"{name}\n\n{doc}"
        inner = [n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]
        stack += [(f"{name}.{n.name}", n) for n in reversed(inner)]


_HUB_TEXT = Defaults("task/data/hub_text")


@dataclass(frozen=True)
class HubText:
    """A text data set in the hub's layout, read through `datasets`: mirror, local cache, hub.

    Args:
        name: `<owner>/<name>`.
        config: configuration of the data set, or null.
        text_column: column that holds the text.
        document_start: regular expression; rows are lines, and a line that matches opens a document. null: a row
            is a document.
        newlines_are_words: count the end of each line as a word, as the published WikiText figures do.
        test: whether the data set has a test split.
    """

    name: str
    config: str | None = _HUB_TEXT("config")
    text_column: str = _HUB_TEXT("text_column")
    document_start: str | None = _HUB_TEXT("document_start")
    newlines_are_words: bool = _HUB_TEXT("newlines_are_words")
    test: bool = _HUB_TEXT("test")

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation", "test") if self.test else ("train", "validation")

    def _rows(self, split: Split, mirror: str | None):  # type: ignore[no-untyped-def]
        from modern_llm.hub import find_dataset

        rows = find_dataset(self.name, self.config, split, mirror)
        if self.text_column not in rows.column_names:
            raise ValueError(
                f"task.data.text_column={self.text_column!r}: {self.name} has the columns {rows.column_names}. "
                "Name one of them."
            )
        return rows

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        from modern_llm.hub import dataset_fingerprint

        content = dataset_fingerprint(self.name, self.config, split, mirror)
        return f"hub {self.name} {self.config} {split} {self.text_column} {self.document_start} {content}"

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        rows = self._rows(split, mirror).select_columns([self.text_column])
        if self.document_start is None:
            yield from (row[self.text_column] for row in rows if row[self.text_column].strip())
            return
        opens, lines = re.compile(self.document_start), list[str]()
        for row in rows:
            line = row[self.text_column]
            if opens.match(line) and any(held.strip() for held in lines):
                yield "".join(lines)
                lines = []
            # The hub stores an empty line as an empty string; its newline is part of the text.
            lines.append(line if line.endswith("\n") else line + "\n")
        if any(held.strip() for held in lines):
            yield "".join(lines)


_PIECE_BYTES = 2**22  # a longer file is read as several documents, so that memory stays flat


@cache
def _content(path: Path, size: int, modified: int) -> bytes:
    """Hash of a file, taken once in a process while the file stays as it is."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def file_content(path: Path) -> bytes:
    """Hash of a file's content."""
    status = path.stat()
    return _content(path, status.st_size, status.st_mtime_ns)


_TEXT_FILES = Defaults("task/data/text_files")


@dataclass(frozen=True)
class TextFiles:
    """Any text files of the user's own, in UTF-8.

    Args:
        train: files, folders (their *.txt and *.md, at any depth) or glob patterns.
        validation: likewise; empty: the last `validation_percent` of every training file.
        test: likewise; empty: none.
        validation_percent: share of the bytes kept for validation where `validation` is empty.
        document_separator: line between documents of one file, such as `<|endoftext|>`; null: a file is one.
    """

    train: list[str] = _TEXT_FILES("train")
    validation: list[str] = _TEXT_FILES("validation")
    test: list[str] = _TEXT_FILES("test")
    validation_percent: int = _TEXT_FILES("validation_percent")
    document_separator: str | None = _TEXT_FILES("document_separator")

    newlines_are_words = False

    def __post_init__(self) -> None:
        require(len(self.train) > 0, "task.data.train", self.train, "names no file",
                "Give files, folders or patterns: task.data.train=[path/to/*.txt]")  # fmt: skip
        require(1 <= self.validation_percent <= 50, "task.data.validation_percent", self.validation_percent,
                "must lie between 1 and 50", "Use 5")  # fmt: skip
        for split in self.splits():
            self._files(split)

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation", "test") if self.test else ("train", "validation")

    def _files(self, split: Split) -> list[Path]:
        names = {"train": self.train, "validation": self.validation or self.train, "test": self.test}[split]
        found: list[Path] = []
        for name in names:
            path = Path(name).expanduser()
            if path.is_dir():
                files = [f for f in path.rglob("*") if f.suffix in (".txt", ".md")]
            elif path.is_file():
                files = [path]
            else:
                files = [f for f in path.parent.glob(path.name) if f.is_file()] if path.parent.is_dir() else []
                if "**" in name:
                    files = [
                        f for f in Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))) if f.is_file()
                    ]
            require(
                len(files) > 0, f"task.data.{split}", name, "matches no file", "Check the path, or quote the pattern"
            )
            found += sorted(files)
        return list(dict.fromkeys(found))

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        digest = hashlib.sha256()
        for path in self._files(split):
            digest.update(file_content(path))
        settings = [split, bool(self.validation), self.validation_percent, self.document_separator]
        return f"text {digest.hexdigest()} {json.dumps(settings)}"

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        shared = not self.validation and split in ("train", "validation")
        for path in self._files(split):
            size = path.stat().st_size
            border = size - size * self.validation_percent // 100 if shared else 0
            lines: list[str] = []
            offset = held = 0
            with path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    start, offset = offset, offset + len(raw)
                    if shared and (start >= border) != (split == "validation"):
                        continue
                    try:
                        line = raw.decode("utf-8")
                    except UnicodeDecodeError as cause:
                        raise ValueError(f"{path}, line {number}: not UTF-8 ({cause}). Convert the file.") from cause
                    separates = self.document_separator is not None and line.strip() == self.document_separator
                    if separates or held > _PIECE_BYTES:
                        if any(part.strip() for part in lines):
                            yield "".join(lines)
                        lines, held = [], 0
                    if not separates:
                        lines.append(line)
                        held += len(raw)
            if any(part.strip() for part in lines):
                yield "".join(lines)
