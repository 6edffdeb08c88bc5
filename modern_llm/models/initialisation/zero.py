"""Blocks that begin as nothing, and a head that begins small."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.defaults import Defaults
from modern_llm.models.initialisation.scheme import InitScheme

_DEFAULTS = Defaults("model/init/zero")


@dataclass(frozen=True)
class ZeroInit(InitScheme):
    """What writes to the residual stream is 0, so that every block begins as the identity; inner matrices keep the size
    of what they read, gain / sqrt(inputs) (Jordan et al. 2024, modded-nanogpt, records 5 and 8).

    Args:
        embedding_std: of the embedding.
        head_std: of the head, small, so that all tokens are about equally likely at first.
        inner_gain: of the matrices inside blocks.
    """

    embedding_std: float = _DEFAULTS("embedding_std")
    head_std: float = _DEFAULTS("head_std")
    inner_gain: float = _DEFAULTS("inner_gain")

    def embedding(self, d_model: int) -> float:
        return self.embedding_std

    def head(self, d_model: int) -> float:
        return self.head_std

    def inner(self, inputs: int) -> float:
        return self.inner_gain / inputs**0.5

    def last(self, inputs: int, n_layers: int) -> float:
        return 0.0
