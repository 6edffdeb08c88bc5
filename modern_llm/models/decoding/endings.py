"""Where a text ends: at the end of text, or in front of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modern_llm.models.kernels import device_of, tokens_per_read

if TYPE_CHECKING:
    from modern_llm.models.decoding.generation import TextCodec


def collect_texts(
    steps: Iterator[Tensor],
    count: int,
    closed: set[int],
    eos_id: int | None,
    finished: Callable[[int, list[int]], bool] | None,
) -> list[list[int]]:
    """New ids of every text, each up to its end, which is the last of them where it is eos. They are read from the
    device several tokens at once: what is computed behind the end of a text meanwhile is cut.

    Args:
        steps: what `stream_tokens` yields, (B,) ids each.
        count: of texts B.
        closed: gets the rows that have ended; the stream reads it.
        eos_id, finished: what ends a text, as in `generate`.
    """
    texts: list[list[int]] = [[] for _ in range(count)]
    for step in _read(steps):
        for row, chosen in enumerate(step):
            if row in closed:
                continue
            texts[row].append(chosen)
            if chosen == eos_id or (finished is not None and finished(row, texts[row])):
                closed.add(row)
        if len(closed) == count:
            break
    return texts


def _read(steps: Iterator[Tensor]) -> Iterator[list[int]]:
    """The ids of each step, (B,)."""
    for first in steps:
        group = [first, *islice(steps, tokens_per_read(device_of(first)) - 1)]
        yield from torch.stack(group).tolist()


def without_end(ids: list[int], eos_id: int | None) -> list[int]:
    """Ids of a text without the eos at its end."""
    return ids[:-1] if ids and ids[-1] == eos_id else ids


def stops(tokenizer: TextCodec, ids: Sequence[int], stop: Sequence[str], in_blanks: bool = False) -> bool:
    """Whether a text, whose last id is new, holds one of the stop strings."""
    # A stop string has at most as many tokens as bytes; looking further back would cost more each step.
    tail = tokenizer.decode(ids[-max(len(s.encode()) for s in stop) - 4 :])
    return any(s in tail for s in stop) and stop_place(tokenizer.decode(ids), stop, in_blanks) is not None


def stop_place(text: str, stop: Sequence[str], in_blanks: bool = False) -> int | None:
    """Where the first stop string begins; unless `in_blanks`, blanks in front of the first visible character stop
    nothing, because a model may begin its answer on a new line."""
    blank = 0 if in_blanks else len(text) - len(text.lstrip())
    return min((i for s in stop if (i := text.find(s, blank)) >= 0), default=None)
