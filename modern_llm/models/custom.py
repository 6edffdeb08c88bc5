"""A decoder of a person's own: its settings. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Self

from modern_llm.checks import require
from modern_llm.models.config import ModernLLMConfig, rows_for

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class CustomModel(ABC):
    """Settings of a whole model that is none of this project's, for every task that takes a decoder.

    Args:
        vocab_size: ids; null: the tokenizer's size, filled in before the model is built.
        max_seq_len: tokens that the model is made for.

    Attributes:
        attention_window: last tokens on which what a position gives can depend; None: all.
    """

    attention_window: ClassVar[int | None] = None

    vocab_size: int | None = None
    max_seq_len: int = 256

    def __post_init__(self) -> None:
        require(self.max_seq_len >= 1, "model.max_seq_len", self.max_seq_len, "must be at least 1", "Raise it")

    @abstractmethod
    def build(self) -> nn.Module:
        """The module, on the CPU, for `vocab_size` ids.

        Its `forward(input_ids)` gives hidden states (B, T, d) of ids (B, T), none of which depends on a later one. Its
        `head` is a linear map without a bias from them to logits. It may have `new_cache(batch_size, max_tokens)`, and
        `forward` then takes `cache=`, with the ids behind those that it holds; a cache has `length`, `repeated` and
        `keep`, as `DecodingCache` says. Without one, all that was read is read again for each new token.
        """

    def with_vocab_size(self, vocab_size: int) -> Self:
        """These settings for a tokenizer of `vocab_size` ids.

        Raises:
            ValueError: `vocab_size` is set already and smaller than the tokenizer's.
        """
        return replace(self, vocab_size=rows_for(self.vocab_size, vocab_size))


FromScratch = ModernLLMConfig | CustomModel  # settings of what begins with random weights
