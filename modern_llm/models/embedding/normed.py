"""The norm behind the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parts.part import EmbeddingPart, Sizes

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.models.embedding.predecessors import Predecessors

_DEFAULTS = Defaults("model/embedding/normed", "normed")


@dataclass(frozen=True)
class NormedEmbedding(EmbeddingPart):
    """x <- x / sqrt(mean(x^2) + eps): every token enters the first block at the same size, whatever its embedding grew
    to (modded-nanogpt, record 8).

    Args:
        eps: added under the root.
    """

    eps: float = _DEFAULTS("eps")

    def check(self, sizes: Sizes) -> None:
        require(self.eps > 0, "model.embedding.normed.eps", self.eps, "must be above 0", "Use 1e-6")

    def apply(self, weights: Any, x: Tensor, before: Predecessors) -> Tensor:
        from modern_llm.models.norm import rms_norm

        return rms_norm(x, None, self.eps)
