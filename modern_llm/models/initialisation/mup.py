"""Initial weights that keep every activation at one size at every width."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.defaults import Defaults
from modern_llm.models.initialisation.scheme import InitScheme

_DEFAULTS = Defaults("model/init/mup")


@dataclass(frozen=True)
class MuPInit(InitScheme):
    """Maximal update parametrisation (Yang et al. 2022, arXiv 2203.03466, table 8): variances 1 for the embedding, 1 /
    inputs inside, 1 / inputs^2 for the head, and, over depth, 1 / (2 n_layers) of that for what writes to the residual
    stream.

    Args:
        embedding_std: of the embedding.
        inner_gain: times 1 / sqrt(inputs) inside.
        head_gain: times 1 / inputs at the head.
    """

    embedding_std: float = _DEFAULTS("embedding_std")
    inner_gain: float = _DEFAULTS("inner_gain")
    head_gain: float = _DEFAULTS("head_gain")

    def embedding(self, d_model: int) -> float:
        return self.embedding_std

    def head(self, d_model: int) -> float:
        return self.head_gain / d_model

    def inner(self, inputs: int) -> float:
        return self.inner_gain / inputs**0.5

    def last(self, inputs: int, n_layers: int) -> float:
        return self.inner(inputs) / (2 * n_layers) ** 0.5
