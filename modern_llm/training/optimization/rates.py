"""How fast each kind of parameter is trained. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import EMBEDDINGS, GATES, HEADS, MATRICES, SCALARS, VECTORS

_RATES = Defaults("trainer/optimizer/rates/equal")


@dataclass(frozen=True)
class Rates:
    """Learning rate of each kind of parameter, as a multiple of `trainer.optimizer.lr`, and the share of
    `trainer.optimizer.weight_decay` that it gets. What is shrunk is shrunk by lr * weight_decay * share in each step,
    whatever the rate of its kind.

    Args:
        matrices, embeddings, heads, gates, vectors, scalars: rates.
        decay_matrices, decay_embeddings, decay_heads, decay_gates, decay_vectors, decay_scalars: shares.
        head_width: width of a model whose head has exactly its rate: others are multiplied by head_width / width, with
            which a head's logits move equally far in models of any width (Yang et al. 2022, arXiv 2203.03466, table
            8); null: the same rate at every width.
    """

    matrices: float = _RATES("matrices")
    embeddings: float = _RATES("embeddings")
    heads: float = _RATES("heads")
    gates: float = _RATES("gates")
    vectors: float = _RATES("vectors")
    scalars: float = _RATES("scalars")
    decay_matrices: float = _RATES("decay_matrices")
    decay_embeddings: float = _RATES("decay_embeddings")
    decay_heads: float = _RATES("decay_heads")
    decay_gates: float = _RATES("decay_gates")
    decay_vectors: float = _RATES("decay_vectors")
    decay_scalars: float = _RATES("decay_scalars")
    head_width: int | None = _RATES("head_width")

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            full = f"trainer.optimizer.rates.{key}"
            if key == "head_width":
                require(value is None or value >= 1, full, value, "must be at least 1", "Use null for none")
            elif key.startswith("decay_"):
                require(value >= 0, full, value, "must not be negative", "Use 0 for none")
            else:
                require(value > 0, full, value, "must be above 0", "Use 1 for the rate of trainer.optimizer.lr")

    def of(self, kind: str) -> float:
        """Multiple of the rate."""
        return {
            MATRICES: self.matrices,
            EMBEDDINGS: self.embeddings,
            HEADS: self.heads,
            GATES: self.gates,
            VECTORS: self.vectors,
            SCALARS: self.scalars,
        }[kind]

    def decay_of(self, kind: str) -> float:
        """Share of the weight decay."""
        return {
            MATRICES: self.decay_matrices,
            EMBEDDINGS: self.decay_embeddings,
            HEADS: self.decay_heads,
            GATES: self.decay_gates,
            VECTORS: self.decay_vectors,
            SCALARS: self.decay_scalars,
        }[kind]
