"""What the head does not need of the middle of the stream is taken out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import SCALARS
from modern_llm.models.parts.part import Carried, ResidualPart, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/residual/backout", "backout")


@dataclass(frozen=True)
class Backout(ResidualPart):
    """x <- x - s x_m in front of the last norm, x_m what left block m = L // 2 (modded-nanogpt, record 40). With s = 0
    it is the plain stream.

    Args:
        weight: s at first.
    """

    weight: float = _DEFAULTS("weight")

    def model_weights(self, sizes: Sizes) -> dict[str, Weight]:
        return {"weight": Weight((), SCALARS, self.weight)}

    def leave(self, weights: Any, x: Tensor, carried: Carried, layer: int, n_layers: int) -> None:
        if layer == n_layers // 2:
            carried["backout"] = x

    def end(self, weights: Any, x: Tensor, carried: Carried) -> Tensor:
        return x - weights.weight * carried["backout"]
