"""A learned vector for each position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import EMBEDDINGS
from modern_llm.models.parts.part import EmbeddingPart, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.models.embedding.predecessors import Predecessors

_DEFAULTS = Defaults("model/embedding/learned_positions", "learned_positions")


@dataclass(frozen=True)
class LearnedPositions(EmbeddingPart):
    """x_t <- x_t + P[t], t counted from the beginning of the text (Radford et al. 2019, section 2.3, GPT-2). With P = 0
    it is the plain embedding.

    Args:
        std: of P at first. Its rows are the model's `max_seq_len`.

    Raises:
        ValueError: when it is applied, a text with more tokens.
    """

    std: float = _DEFAULTS("std")

    def __post_init__(self) -> None:
        require(self.std >= 0, "model.embedding.learned_positions.std", self.std, "must not be negative", "Use 0.02")

    def model_weights(self, sizes: Sizes) -> dict[str, Weight]:
        return {"table": Weight((sizes.max_seq_len, sizes.d_model), EMBEDDINGS, std=self.std)}

    def apply(self, weights: Any, x: Tensor, before: Predecessors) -> Tensor:
        from torch.nn import functional as F

        positions, longest = before.positions(x)
        if longest is not None and longest > len(weights.table):
            raise ValueError(
                f"model.max_seq_len={len(weights.table)}: learned positions end there, and a text has {longest} "
                "tokens. Give shorter texts, or a model with rotary positions: model/embedding=plain model/rope=plain."
            )
        return x + F.embedding(positions, weights.table)
