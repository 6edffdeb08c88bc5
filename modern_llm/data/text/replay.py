"""Text of the kind that a model was trained on before, among what it learns now."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modern_llm.checks import require
from modern_llm.data.text.sources import Source
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from modern_llm.data.text.tokens import TokenCorpus
    from modern_llm.objectives.base import Batch

_DEFAULTS = Defaults("task/replay/own")


@dataclass(frozen=True)
class Replay:
    """Which text, and how much of it.

    Args:
        data: the text; null: that of the run whose model is trained on.
        share: of the rows of a batch.
    """

    data: Source | None = _DEFAULTS("data")
    share: float = _DEFAULTS("share")

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "task.replay.share", self.share, "must lie in (0, 1)",
                "Use 0.25, or task/replay=none for none")  # fmt: skip

    def rows(self, others: int) -> int:
        """Rows of text beside so many others; at least one."""
        return max(round(others * self.share / (1 - self.share)), 1)


class _Stream(Protocol):
    def __next__(self) -> Batch: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def facts(self) -> dict[str, float]: ...


class WithReplay:
    """Batches of conversations with rows of text below them, as long as the longest conversation.

    The n-th batch takes its text from places that the seed and n alone decide, so there is nothing to be replayed on a
    resume.

    Args:
        stream: of conversations: `input_ids` (B, T), `target_positions`, `labels` (B, K), `lengths`, `sequence_ids`
            (B,), perhaps `document_ids` (B, T).
        replay: how much text.
        corpus: the text.
        seed: of the places.

    Yields:
        The same of B + R rows; every token of the text is a target. `sequence_ids` of text are -1 - its place.

    Raises:
        ValueError: when a batch is longer than the text.
    """

    def __init__(self, stream: _Stream, replay: Replay, corpus: TokenCorpus, seed: int) -> None:
        self.stream, self.replay, self.corpus, self.seed = stream, replay, corpus, seed
        self.number = 0

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        import numpy as np
        import torch
        from torch.nn import functional as F

        from modern_llm.models.fused_loss import IGNORE_INDEX

        batch = next(self.stream)
        T, count = batch["input_ids"].shape[1], len(self.corpus.ids)
        if count <= T:
            raise ValueError(
                f"task.replay.data: the text has only {count} tokens, and a row {T}. Use more text, or a smaller "
                "task.max_tokens."
            )
        random = np.random.Generator(np.random.Philox(key=[self.seed, self.number]))
        self.number += 1
        starts = random.integers(count - T, size=self.replay.rows(len(batch["input_ids"])))
        ids = torch.from_numpy(np.stack([self.corpus.ids[s : s + T + 1] for s in starts]).astype(np.int64))
        room = T - batch["labels"].shape[1]  # of positions: every token of a text is predicted
        text = {
            "input_ids": ids[:, :-1],
            "target_positions": torch.arange(T).expand(len(ids), -1),
            "labels": ids[:, 1:],
            "lengths": torch.full((len(ids),), T),
            "sequence_ids": torch.from_numpy(-1 - starts),
            "document_ids": torch.zeros(len(ids), T, dtype=torch.long),
        }
        batch["target_positions"] = F.pad(batch["target_positions"], (0, room))
        batch["labels"] = F.pad(batch["labels"], (0, room), value=IGNORE_INDEX)
        return {name: torch.cat([tensor, text[name]]) for name, tensor in batch.items()}

    def facts(self) -> dict[str, float]:
        """Those of the conversations."""
        return self.stream.facts()

    @property
    def independent_of_run(self) -> bool:
        """As the conversations."""
        return getattr(self.stream, "independent_of_run", False)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands."""
        return {"number": self.number, "text": self.corpus.fingerprint, "stream": self.stream.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a stream with the same settings stood.

        Raises:
            ValueError: the text or the conversations are others.
        """
        if state.get("text") != self.corpus.fingerprint:
            raise ValueError(
                "the text of task.replay has changed since the checkpoint was written, so the run cannot be resumed "
                "exactly. Restore it, or start a new run."
            )
        self.number = state["number"]
        self.stream.load_state_dict(state["stream"])
