"""Examples as padded batches: texts of like length together, so that little is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from modern_llm.models.fused_loss import IGNORE_INDEX
from modern_llm.objectives.base import Batch

MULTIPLE = 8  # of every padded length: what tensor cores and vector units like
_POOL = 32  # batches that are sorted by length together; more would make the order less random


@dataclass(frozen=True, slots=True)
class Encoded:
    """Ids of one example.

    Attributes:
        index: of the example in its split.
        input_ids: what the model reads first: prompt, text or source.
        target_ids: what it is to write; empty for a classifier.
        label: number of the class; -1 without one.
    """

    index: int
    input_ids: list[int]
    target_ids: list[int]
    label: int = -1

    @property
    def length(self) -> int:
        """Tokens that are computed."""
        return len(self.input_ids) + len(self.target_ids)


class Sized(Protocol):
    """An example that knows how long it is."""

    @property
    def length(self) -> int:
        """Tokens that are computed."""


Collate = Callable[[Sequence[Any]], Batch]


def padded(rows: Sequence[Sequence[int]], fill: int, multiple: int = MULTIPLE) -> Tensor:
    """(B, T) with T a multiple of `multiple`; shorter rows are filled up on the right."""
    length = -(-max(map(len, rows)) // multiple) * multiple
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])


def _common(items: Sequence[Encoded], lengths: list[int]) -> Batch:
    return {"lengths": torch.tensor(lengths), "sequence_ids": torch.tensor([item.index for item in items])}


class CompletionBatch:
    """Prompt and answer as one text; the loss is on the answer alone.

    Padding stands on the right, where a causal model never sees it: no mask is needed, whatever id fills it, be it
    the end of text, whose one real occurrence is learned.

    Args:
        fill_id: at padding.

    Returns (when called):
        `input_ids` (B, T); `target_positions` (B, K), where the tokens of the answer are predicted; `labels` (B, K),
        those tokens; `lengths` (B,) tokens without padding; `sequence_ids` (B,).
    """

    def __init__(self, fill_id: int) -> None:
        self.fill_id = fill_id

    def __call__(self, items: Sequence[Encoded]) -> Batch:
        rows = [[*item.input_ids, *item.target_ids[:-1]] for item in items]
        positions = [range(len(item.input_ids) - 1, len(row)) for item, row in zip(items, rows, strict=True)]
        return {
            "input_ids": padded(rows, self.fill_id),
            "target_positions": padded(positions, 0),
            "labels": padded([item.target_ids for item in items], IGNORE_INDEX),
            **_common(items, [len(row) for row in rows]),
        }


class ClassificationBatch:
    """Texts with a label, padded on the right.

    Returns (when called):
        `input_ids` (B, T); `last` (B,) index of the last real token; `labels` (B,); `lengths`, `sequence_ids` (B,).
    """

    def __init__(self, fill_id: int) -> None:
        self.fill_id = fill_id

    def __call__(self, items: Sequence[Encoded]) -> Batch:
        lengths = [len(item.input_ids) for item in items]
        return {
            "input_ids": padded([item.input_ids for item in items], self.fill_id),
            "last": torch.tensor(lengths) - 1,
            "labels": torch.tensor([item.label for item in items]),
            **_common(items, lengths),
        }


class Seq2SeqBatch:
    """Sources for the encoder and answers for the decoder.

    Args:
        fill_id: at padding.
        start_id: what every decoded text starts with.

    Returns (when called):
        `input_ids`, `attention_mask` (B, S); `decoder_input_ids`, `labels` (B, T), shifted against each other;
        `lengths` (B,) tokens of both; `sequence_ids` (B,).
    """

    def __init__(self, fill_id: int, start_id: int) -> None:
        self.fill_id, self.start_id = fill_id, start_id

    def __call__(self, items: Sequence[Encoded]) -> Batch:
        return {
            "input_ids": padded([item.input_ids for item in items], self.fill_id),
            "attention_mask": padded([[1] * len(item.input_ids) for item in items], 0),
            "decoder_input_ids": padded([[self.start_id, *item.target_ids[:-1]] for item in items], self.fill_id),
            "labels": padded([item.target_ids for item in items], IGNORE_INDEX),
            **_common(items, [item.length for item in items]),
        }


class Answered(Protocol):
    """A prompt and the answers to it."""

    @property
    def index(self) -> int:
        """Number of the example."""

    @property
    def prompt_ids(self) -> list[int]:
        """What all answers continue; not empty."""

    @property
    def answers(self) -> Sequence[list[int]]:
        """Ids of each, end of text included; not empty."""


def read_tokens(item: Answered) -> int:
    """Tokens that are computed: the prompt once, and of each answer all but the last."""
    return len(item.prompt_ids) + sum(len(answer) - 1 for answer in item.answers)


def branched(items: Sequence[Answered], fill_id: int) -> Batch:
    """Prompt and answers in one row, the answers as branches behind their shared prompt.

    Padding stands on the right; every padding token is a branch of its own, so that it is seen by nobody and stands
    right behind the prompt, inside the context.

    Args:
        items: B of them, with A answers each.
        fill_id: at padding.

    Returns:
        `input_ids`, `branch_ids` (B, T), 0 in the prompt and 1 to A in the answers; `target_positions`, `labels`
        (B, A, K), where the tokens of the answers are predicted, and those tokens; `answer_lengths` (B, A), how many
        those are; `branch_lengths` (B, 1 + A), tokens of the prompt and of each branch; `lengths`, `sequence_ids` (B,).
    """
    rows = [[*p.prompt_ids, *(token for answer in p.answers for token in answer[:-1])] for p in items]
    input_ids = padded(rows, fill_id)
    B, T = input_ids.shape
    A, K = len(items[0].answers), max(len(answer) for p in items for answer in p.answers)
    branch_ids = (torch.arange(T) + A + 1).repeat(B, 1)
    positions = torch.zeros(B, A, K, dtype=torch.long)
    labels = torch.full((B, A, K), IGNORE_INDEX)
    for row, item in enumerate(items):
        start = len(item.prompt_ids)
        branch_ids[row, :start] = 0
        for branch, answer in enumerate(item.answers):
            n = len(answer)
            labels[row, branch, :n] = torch.tensor(answer)
            # The first token of every answer is predicted at the end of the prompt.
            positions[row, branch, 0] = len(item.prompt_ids) - 1
            positions[row, branch, 1:n] = torch.arange(start, start + n - 1)
            branch_ids[row, start : start + n - 1] = branch + 1
            start += n - 1
    answers = torch.tensor([list(map(len, item.answers)) for item in items])
    return {
        "input_ids": input_ids,
        "branch_ids": branch_ids,
        "target_positions": positions,
        "labels": labels,
        "answer_lengths": answers,
        "branch_lengths": torch.cat([torch.tensor([[len(item.prompt_ids)] for item in items]), answers - 1], 1),
        "lengths": torch.tensor([read_tokens(item) for item in items]),
        "sequence_ids": torch.tensor([item.index for item in items]),
    }


def slots(batch: Batch) -> int:
    """Token places of a batch, padding included."""
    return sum(batch[key].numel() for key in ("input_ids", "decoder_input_ids") if key in batch)


class LengthBatches:
    """Endless batches over examples, in an order that depends on the seed alone.

    An epoch visits every example once: it shuffles them, sorts pools of some batches by length, and visits the
    batches in a random order. Its state is a few numbers: resuming replays nothing.

    Args:
        items: the examples.
        batch_size: examples per batch B; the last batch of an epoch may be smaller.
        seed: of the order.
        collate: makes a batch.
        fingerprint: of data and tokenizer, to tell on resume that they are the same.
    """

    independent_of_run = True  # the next batch is the same whatever becomes of the model

    def __init__(self, items: Sequence[Sized], batch_size: int, seed: int, collate: Collate, fingerprint: str) -> None:
        self.items, self.batch_size, self.seed, self.collate = items, batch_size, seed, collate
        self.fingerprint = fingerprint
        self.epoch = self.position = self.real = self.slots = 0
        self._lengths = np.array([item.length for item in items])
        self._batches = self._plan(0)

    def _plan(self, epoch: int) -> list[Any]:
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        order = random.permutation(len(self.items))
        size, batches = self.batch_size, []
        for start in range(0, len(order), _POOL * size):
            pool = order[start : start + _POOL * size]
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        return [batches[i] for i in random.permutation(len(batches))]

    @property
    def padding_share(self) -> float:
        """Padding among all token places so far."""
        return 1 - self.real / self.slots if self.slots else 0.0

    @property
    def epochs(self) -> float:
        """Passes over the examples so far."""
        return self.epoch + self.position / len(self._batches)

    def facts(self) -> dict[str, float]:
        """Passes over the examples so far, and the share of padding."""
        return {"epochs": self.epochs, "padding_share": self.padding_share}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self.position == len(self._batches):
            self.epoch, self.position = self.epoch + 1, 0
            self._batches = self._plan(self.epoch)
        batch = self._make(self._batches[self.position])
        self.position += 1
        self.real += int(batch["lengths"].sum())
        self.slots += slots(batch)
        return batch

    def _make(self, planned: Any) -> Batch:
        return self.collate([self.items[i] for i in planned])

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {k: getattr(self, k) for k in ("epoch", "position", "real", "slots", "fingerprint")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a stream with the same settings stood.

        Raises:
            ValueError: the data are others.
        """
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                "the data or the tokenizer have changed since the checkpoint was written, so the run cannot be "
                "resumed exactly. Restore them, or start a new run."
            )
        for key, value in state.items():
            setattr(self, key, value)
        self._batches = self._plan(self.epoch)


class PackedBatches(LengthBatches):
    """As `LengthBatches`, with as many whole examples in each row as fit: next to nothing is padding, and no example
    is cut.

    An epoch shuffles the examples and puts each into the fullest open row that still has room for it (best fit).

    Args:
        items: the examples, none longer than a row.
        batch_size: rows per batch B.
        row_length: tokens per row.
        seed, fingerprint: as in `LengthBatches`.
        collate: makes a batch of rows, each a list of examples.

    Raises:
        ValueError: an example is longer than a row.
    """

    def __init__(
        self,
        items: Sequence[Sized],
        batch_size: int,
        row_length: int,
        seed: int,
        collate: Callable[[Sequence[Sequence[Any]]], Batch],
        fingerprint: str,
    ) -> None:
        self.row_length = row_length
        longest = max((item.length for item in items), default=0)
        if longest > row_length:
            raise ValueError(f"row_length={row_length}: an example has {longest} tokens. Raise it, or leave it out.")
        super().__init__(items, batch_size, seed, collate, fingerprint)

    def _plan(self, epoch: int) -> list[Any]:
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        rows: list[list[int]] = []
        room: list[tuple[int, int]] = []  # (tokens left, row), ascending
        for i in random.permutation(len(self.items)).tolist():
            length = int(self._lengths[i])
            place = bisect_left(room, (length, -1))
            if place == len(room):
                rows.append([])
                left, row = self.row_length, len(rows) - 1
            else:
                left, row = room.pop(place)
            rows[row].append(i)
            insort(room, (left - length, row))
        rows = [rows[i] for i in random.permutation(len(rows))]
        return [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def _make(self, planned: Any) -> Batch:
        return self.collate([[self.items[i] for i in row] for row in planned])


def by_length(items: Sequence[Sized], batch_size: int) -> Iterator[list[int]]:
    """Places of all items, longest first and in batches: an evaluation that does not fit into memory fails at once."""
    order = sorted(range(len(items)), key=lambda i: -items[i].length)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
