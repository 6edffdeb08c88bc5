"""Next-token prediction of an encoder-decoder."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from modern_llm.models.fused_loss import IGNORE_INDEX, linear_cross_entropy
from modern_llm.models.output_head import OutputHead
from modern_llm.objectives.base import Batch, LossOutput, Objective


class Seq2SeqLM(Protocol):
    """What the objective asks of an encoder-decoder."""

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""

    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        """What the decoder reads of the sources (B, S)."""

    def decoder_states(self, encoded: Any, input_ids: Tensor) -> Tensor:
        """(B, T, d) states that the head reads."""


class Seq2Seq(Objective):
    """Cross-entropy of every token of the answer, given the source."""

    def count(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["lengths"].sum())

    def __call__(self, model: Seq2SeqLM, batch: Batch) -> LossOutput:
        """batch: `input_ids`, `attention_mask` (B, S); `decoder_input_ids`, `labels` (B, T)."""
        encoded = model.encode(batch["input_ids"], batch["attention_mask"])
        hidden = model.decoder_states(encoded, batch["decoder_input_ids"])
        return LossOutput(linear_cross_entropy(hidden, model.output_head, batch["labels"]))
