"""A corpus tokenised once, in a memory-mapped file that is known by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from modern_llm.checks import require
from modern_llm.data.kept import kept
from modern_llm.data.text.sources import Source, Split
from modern_llm.data.text.tokenizers import Tokenizer

_FORMAT = 2  # raise when the layout below changes: older caches are then made anew
_IDS, _COUNTS = "ids.bin", "counts.json"
_BATCH_BYTES = 2**23  # text that is tokenised at a time


@dataclass(frozen=True)
class CorpusCounts:
    """What perplexities are divided by.

    Args:
        tokens: ids of the text, without the separators.
        documents: documents.
        words: whitespace-separated words, plus one per line where the source counts line ends as words.
        bytes: UTF-8 bytes of the text.
    """

    tokens: int
    documents: int
    words: int
    bytes: int


@dataclass(frozen=True)
class TokenCorpus:
    """One split as ids: the separator, document, separator, document, …, separator.

    Attributes:
        ids: (N,) memory-mapped, uint16 or uint32.
        eos_id: the separator.
        counts: of the text.
        fingerprint: of source, split and tokenizer.
    """

    ids: np.ndarray
    eos_id: int
    counts: CorpusCounts
    fingerprint: str

    def head(self, tokens: int) -> TokenCorpus:
        """The first `tokens` ids of the text, its last document cut off there. Of the counts only tokens and documents
        are of the part.

        Raises:
            ValueError: the text is shorter.
        """
        separators = np.flatnonzero(self.ids == self.eos_id)
        # The k-th document ends behind so many ids of text.
        ends = separators - np.arange(len(separators))
        require(tokens <= self.counts.tokens, "task.train_tokens", tokens,
                f"is more than the {self.counts.tokens} tokens of the text", "Lower it, or leave it out")  # fmt: skip
        documents = int(np.searchsorted(ends[1:], tokens)) + 1
        ids = np.append(self.ids[: tokens + documents], self.ids.dtype.type(self.eos_id))
        counts = replace(self.counts, tokens=tokens, documents=documents)
        return TokenCorpus(ids, self.eos_id, counts, f"{self.fingerprint} first {tokens}")


def _text_batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch, held = list[str](), 0
    for document in documents:
        batch.append(document)
        held += len(document)
        if held > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def tokenise(
    source: Source,
    split: Split,
    tokenizer: Tokenizer,
    cache: Path,
    mirror: str | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> TokenCorpus:
    """The ids of a split, from the cache where they are there already.

    Args:
        source, split: the text.
        tokenizer: what makes ids of it.
        cache: folder of caches; the name in it is a hash of content and tokenizer.
        mirror: root of the local mirror of the hub, or None.
        report: told how far a new cache has come.

    Raises:
        ValueError: the split has no text.
    """
    key = json.dumps([_FORMAT, source.fingerprint(split, mirror), source.newlines_are_words, tokenizer.fingerprint])
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")

    def make(folder: Path) -> None:
        counts = _write_ids(source, split, tokenizer, mirror, dtype, folder / _IDS, report)
        if counts.tokens == 0:
            raise ValueError(f"the {split} split has no text. Check the source {source!r}.")
        (folder / _COUNTS).write_text(json.dumps(asdict(counts)))

    folder = kept(cache / "tokens" / fingerprint[:24], make)
    counts = CorpusCounts(**json.loads((folder / _COUNTS).read_text()))
    return TokenCorpus(np.memmap(folder / _IDS, dtype=dtype, mode="r"), tokenizer.eos_id, counts, fingerprint)


def _write_ids(
    source: Source,
    split: Split,
    tokenizer: Tokenizer,
    mirror: str | None,
    dtype: np.dtype,
    path: Path,
    report: Callable[[str], None],
) -> CorpusCounts:
    tokens = documents = words = size = 0
    separator = np.array([tokenizer.eos_id], dtype=dtype)
    with path.open("wb") as file:
        file.write(separator.tobytes())
        for batch in _text_batches(source.documents(split, mirror)):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                file.write(np.array(ids, dtype=dtype).tobytes() + separator.tobytes())
                tokens += len(ids)
                words += len(text.split()) + (text.count("\n") if source.newlines_are_words else 0)
                size += len(text.encode())
            documents += len(batch)
            report(f"tokenising {split}: {tokens:,} tokens of {documents:,} documents")
    return CorpusCounts(tokens, documents, words, size)
