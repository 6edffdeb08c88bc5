"""Classification of whole texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from torch import Tensor
from torch.nn import functional as F

from modern_llm.objectives.base import Batch, LossOutput, Objective


class TextClassifier(Protocol):
    """What the objective and the evaluation ask of a classifier."""

    @property
    def labels(self) -> list[str]:
        """Words of the C classes."""

    def logits(self, input_ids: Tensor, last: Tensor) -> Tensor:
        """(B, C) for texts (B, T) whose last real tokens stand at `last` (B,)."""


class Classification(Objective):
    """Cross-entropy of the labels; the accuracy is logged."""

    metrics: ClassVar[Sequence[str]] = ("accuracy",)

    def count(self, batch: Batch) -> int:
        return len(batch["labels"])

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def __call__(self, model: TextClassifier, batch: Batch) -> LossOutput:
        """batch: `input_ids` (B, T) padded on the right; `last`, `labels` (B,)."""
        logits = model.logits(batch["input_ids"], batch["last"]).float()
        loss = F.cross_entropy(logits, batch["labels"], reduction="sum")
        return LossOutput(loss, {"accuracy": (logits.argmax(-1) == batch["labels"]).float().sum()})
