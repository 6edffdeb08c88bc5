"""The verifier's hyper-parameters. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.attention.grouping import GQAConfig
from modern_llm.models.attention.rope import NoRope, PlainRope
from modern_llm.models.config import ModernLLMConfig, rows_for
from modern_llm.models.feed_forward.kinds import FeedForwardKind, SwiGLU
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.initialisation.scheme import InitScheme

_DEFAULTS = Defaults("model/verifier")


@dataclass(frozen=True)
class VerifierConfig:
    """Hyper-parameters of `VerifierModel`: those of the decoder whose blocks it is made of, and how a text becomes one
    vector.

    Args:
        pooling: `mean` over the real tokens, or the `first` token's state, which has seen all others (Devlin et al.
            2018, arXiv 1810.04805).
        vocab_size, max_seq_len, d_model, n_layers, n_heads, head_dim, ffn_hidden_size, ffn, rope, gqa, qk_norm,
            qkv_bias, norm_eps, dropout, init: as in `ModernLLMConfig`.

    Raises:
        ValueError: an impossible value or combination, with key, value, rule and remedy.
    """

    pooling: Literal["mean", "first"] = _DEFAULTS("pooling")
    vocab_size: int | None = _DEFAULTS("vocab_size")
    max_seq_len: int = _DEFAULTS("max_seq_len")
    d_model: int = _DEFAULTS("d_model")
    n_layers: int = _DEFAULTS("n_layers")
    n_heads: int = _DEFAULTS("n_heads")
    head_dim: int | None = _DEFAULTS("head_dim")
    ffn_hidden_size: int | None = _DEFAULTS("ffn_hidden_size")
    ffn: FeedForwardKind = field(default_factory=SwiGLU)
    rope: PlainRope | NoRope = field(default_factory=PlainRope)
    gqa: GQAConfig = field(default_factory=GQAConfig)
    qk_norm: bool = _DEFAULTS("qk_norm")
    qkv_bias: bool = _DEFAULTS("qkv_bias")
    norm_eps: float = _DEFAULTS("norm_eps")
    dropout: float = _DEFAULTS("dropout")
    init: InitScheme = field(default_factory=GPT2Init)

    def __post_init__(self) -> None:
        require(self.pooling in ("mean", "first"), "model.pooling", self.pooling, "is unknown", "Use mean or first")
        _ = self.blocks  # checks everything else

    @property
    def blocks(self) -> ModernLLMConfig:
        """What the blocks are built from, and the home of their rules."""
        shared = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "pooling"}
        return ModernLLMConfig(**shared)

    def with_vocab_size(self, vocab_size: int) -> VerifierConfig:
        """This configuration for a tokenizer of `vocab_size` ids; raises as `ModernLLMConfig.with_vocab_size`."""
        return replace(self, vocab_size=rows_for(self.vocab_size, vocab_size))
