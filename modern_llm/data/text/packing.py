"""A tokenised corpus as an endless stream of packed batches: no padding, and a position that is saved in O(1)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modern_llm.data.text.ramp import Ramp
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.base import Batch


class _ShuffledDocuments:
    """The ids of a corpus with its documents in another order, each behind its separator.

    Args:
        corpus: the ids.
        random: draws the order.
    """

    def __init__(self, corpus: TokenCorpus, random: np.random.Generator) -> None:
        self.ids = corpus.ids
        separators = np.flatnonzero(np.asarray(corpus.ids) == corpus.eos_id)
        starts, ends = separators[:-1], separators[1:]
        order = random.permutation(len(starts))
        self.starts = np.append(starts[order], separators[-1])  # the last separator stays the last
        self.begins = np.concatenate([[0], np.cumsum((ends - starts)[order])])

    def __getitem__(self, where: slice) -> np.ndarray:
        places = np.arange(where.start, where.stop)
        document = np.searchsorted(self.begins, places, side="right") - 1
        return np.asarray(self.ids[self.starts[document] + places - self.begins[document]])


class PackedStream:
    """Endless batches of consecutive tokens, in an order that depends on the seed alone.

    An epoch cuts the corpus into blocks of `seq_len`, from an offset of its own so that borders move, and visits
    them in a random order. Its state is two numbers: resuming replays nothing.

    Args:
        corpus: the ids.
        seq_len: tokens per sequence T.
        batch_size: sequences per batch B.
        seed: of order and offsets.
        document_ids: add the document of each token, so that attention stays inside documents.
        shuffle_documents: each epoch strings the documents together in an order of its own before it is cut, so that
            no block is ever seen again.
        ramp: fewer or shorter sequences at first; None: the same throughout.

    Yields:
        `input_ids`, `labels` (B, T), shifted by one against each other; `sequence_ids` (B,), where in the text of the
        epoch each sequence starts; with `document_ids`, `document_ids` (B, T).

    Raises:
        ValueError: the corpus is shorter than one sequence.
    """

    def __init__(
        self,
        corpus: TokenCorpus,
        seq_len: int,
        batch_size: int,
        seed: int,
        document_ids: bool = False,
        shuffle_documents: bool = False,
        ramp: Ramp | None = None,
    ) -> None:
        self.corpus, self.seq_len, self.batch_size, self.seed = corpus, seq_len, batch_size, seed
        self.document_ids, self.shuffle_documents, self.ramp = document_ids, shuffle_documents, ramp
        self.progress = 0.0
        if len(corpus.ids) <= seq_len:
            raise ValueError(
                f"task.seq_len={seq_len}: the corpus has only {len(corpus.ids) - 1} tokens to predict. "
                "Use a shorter task.seq_len or more text."
            )
        self._text: np.ndarray | _ShuffledDocuments = corpus.ids
        self.epoch, self.position = 0, 0
        self._starts = self._plan(0)

    def _plan(self, epoch: int) -> np.ndarray:
        """Start of every sequence of an epoch, in the order of visiting."""
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        if self.shuffle_documents:
            self._text = _ShuffledDocuments(self.corpus, random)
        targets = len(self.corpus.ids) - 1
        offset = int(random.integers(self.seq_len)) if targets >= 2 * self.seq_len else 0
        return offset + random.permutation((targets - offset) // self.seq_len) * self.seq_len

    def at(self, progress: float) -> None:
        """What share of the run is done, in [0, 1]: the ramp follows it."""
        self.progress = progress

    @property
    def rows(self) -> int:
        """Sequences of the next batch, before any is cut."""
        return self.batch_size if self.ramp is None else self.ramp.rows(self.batch_size, self.progress)

    @property
    def left(self) -> int:
        """Sequences of this epoch that have not been visited."""
        return len(self._starts) - self.position

    def facts(self) -> dict[str, float]:
        """Passes over the corpus so far."""
        return {"epochs": self.epoch + self.position / len(self._starts)}

    @property
    def independent_of_run(self) -> bool:
        """Whether the next batch is the same however far the run has come."""
        return self.ramp is None

    @property
    def same_shape(self) -> bool:
        """Whether all batches have one."""
        return self.independent_of_run

    def __iter__(self) -> PackedStream:
        return self

    def __next__(self) -> Batch:
        rows, pieces = self.rows, 1
        if self.ramp is not None:
            pieces = self.ramp.pieces(self.seq_len, self.progress)
        starts: list[int] = []
        while len(starts) < rows:
            if self.position == len(self._starts):
                self.epoch, self.position = self.epoch + 1, 0
                self._starts = self._plan(self.epoch)
            starts.append(int(self._starts[self.position]))
            self.position += 1
        read = [self._text[s : s + self.seq_len + 1] for s in starts]
        ids = torch.from_numpy(np.stack(read).astype(np.int64))  # (B, T + 1)
        input_ids, labels = (part.reshape(rows * pieces, -1) for part in (ids[:, :-1], ids[:, 1:]))
        batch = {
            "input_ids": input_ids,
            "labels": labels,
            "sequence_ids": torch.tensor(starts).repeat_interleave(pieces),
        }
        if self.document_ids:
            batch["document_ids"] = (input_ids == self.corpus.eos_id).cumsum(1)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"epoch": self.epoch, "position": self.position, "corpus": self.corpus.fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a stream with the same settings stood.

        Raises:
            ValueError: the corpus is another one.
        """
        if state["corpus"] != self.corpus.fingerprint:
            raise ValueError(
                "the text or the tokenizer has changed since the checkpoint was written, so the run cannot be resumed "
                "exactly. Restore them, or start a new run."
            )
        self.epoch, self.position = state["epoch"], state["position"]
        self._starts = self._plan(self.epoch)
