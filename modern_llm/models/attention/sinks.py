"""Attention sinks (Xiao et al. 2023, arXiv 2309.17453): the choices of `model/sinks`.

All kinds share one rule: with sinks on, a position attends to the sinks and to the last `window` tokens, and
rotary distances to the sinks are counted inside that window. Quality therefore stays stable far beyond the
training length, and the decoding cache stays bounded. This module imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from modern_llm.checks import require
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from modern_llm.models.attention.sink_rows import SinkRows


_SINKS = Defaults("model/sinks/learnable")


@dataclass(frozen=True)
class Sinks:
    """What the kinds share. A new kind says the properties below and what it builds; attention asks nothing else.

    Args:
        window: last tokens that a position attends to, itself included; null: as many as `max_seq_len` holds
            beside the sinks.
    """

    window: int | None = _SINKS("window")

    def __post_init__(self) -> None:
        require(
            self.window is None or self.window >= 1,
            "model.sinks.window",
            self.window,
            "must be at least 1",
            "Give a number of tokens, or null for the model's max_seq_len",
        )

    @property
    def kept_tokens(self) -> int:
        """First tokens of the text that are never evicted."""
        return 0

    @property
    def learned_rows(self) -> int:
        """Learned key/value rows S that stand in front of the text."""
        return 0

    @property
    def rotated(self) -> bool:
        """Whether a query sees the sinks at a rotary distance, which the window then bounds."""
        return True

    def parameter_count(self, n_heads: int, n_kv_heads: int, head_size: int) -> int:
        """Learned numbers per layer."""
        return 0

    def build(self, n_heads: int, n_kv_heads: int, head_size: int) -> SinkRows | None:
        """The module of one layer, or None where nothing is learned."""
        return None


_LEARNABLE_SINKS = Defaults("model/sinks/learnable")


@dataclass(frozen=True)
class LearnableSinks(Sinks):
    """Learned key/value pairs per layer and K/V head that every position may attend to. They stand before the
    text at rotary position 0 (the learnable sink token of Xiao et al. 2023, section 3.3, as keys and values).

    Args:
        num_sinks: learned key/value pairs per K/V head.
    """

    num_sinks: int = _LEARNABLE_SINKS("num_sinks")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_sinks >= 1, "model.sinks.num_sinks", self.num_sinks, "must be at least 1",
                "Set model.use_attention_sinks=false for none")  # fmt: skip

    @property
    def learned_rows(self) -> int:
        return self.num_sinks

    def parameter_count(self, n_heads: int, n_kv_heads: int, head_size: int) -> int:
        return 2 * self.num_sinks * n_kv_heads * head_size

    def build(self, n_heads: int, n_kv_heads: int, head_size: int) -> SinkRows:
        from modern_llm.models.attention.sink_rows import LearnedRows

        return LearnedRows(self.num_sinks, n_kv_heads, head_size)


@dataclass(frozen=True)
class SinkLogits(Sinks):
    """One learned logit per query head in the softmax denominator (gpt-oss, arXiv 2508.10925; the "softmax off by
    one" of Miller 2023 with a learned offset): p_j = exp(s_j) / (exp(sink_h) + sum_k exp(s_k))."""

    @property
    def learned_rows(self) -> int:
        return 1

    @property
    def rotated(self) -> bool:
        return False

    def parameter_count(self, n_heads: int, n_kv_heads: int, head_size: int) -> int:
        return n_heads

    def build(self, n_heads: int, n_kv_heads: int, head_size: int) -> SinkRows:
        from modern_llm.models.attention.sink_rows import LogitRow

        return LogitRow(n_heads, n_kv_heads)


_STREAMING_SINKS = Defaults("model/sinks/streaming")


@dataclass(frozen=True)
class StreamingSinks(Sinks):
    """StreamingLLM (Xiao et al. 2023, section 3.2): the first tokens of the text are kept beside a sliding window,
    and rotary positions are counted inside the cache. No new parameters; up to `max_seq_len` tokens nothing changes.

    Args:
        num_sinks: first tokens that are always kept.
    """

    num_sinks: int = _STREAMING_SINKS("num_sinks")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_sinks >= 1, "model.sinks.num_sinks", self.num_sinks, "must be at least 1",
                "Set model.use_attention_sinks=false for none")  # fmt: skip

    @property
    def kept_tokens(self) -> int:
        return self.num_sinks
