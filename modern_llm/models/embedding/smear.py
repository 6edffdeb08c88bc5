"""A little of the token before in every token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import GATES, SCALARS
from modern_llm.models.parts.part import EmbeddingPart, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.models.embedding.predecessors import Predecessors

_DEFAULTS = Defaults("model/embedding/smear", "smear")


@dataclass(frozen=True)
class Smear(EmbeddingPart):
    """x_t <- x_t + s sigmoid(g . x_t[:channels]) x_{t-1} (modded-nanogpt, record 34). With s = 0 it is the plain
    embedding. The token before is the one in front of it in its own document and branch; the first has none.

    Args:
        weight: s at first.
        gate_channels: channels that the gate reads.
    """

    weight: float = _DEFAULTS("weight")
    gate_channels: int = _DEFAULTS("gate_channels")

    def check(self, sizes: Sizes) -> None:
        require(1 <= self.gate_channels <= sizes.d_model, "model.embedding.smear.gate_channels", self.gate_channels,
                f"must lie between 1 and model.d_model={sizes.d_model}", "Use 12")  # fmt: skip

    def model_weights(self, sizes: Sizes) -> dict[str, Weight]:
        return {"weight": Weight((), SCALARS, self.weight), "gate": Weight((1, self.gate_channels), GATES)}

    def apply(self, weights: Any, x: Tensor, before: Predecessors) -> Tensor:
        from torch.nn import functional as F

        gate = F.linear(x[..., : self.gate_channels], weights.gate).sigmoid()  # (B, T, 1)
        return x + weights.weight * gate * before.of("smear", x)[0]
