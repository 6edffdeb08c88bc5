"""The values of the first block in all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import SCALARS
from modern_llm.models.parts.part import Carried, Sizes, ValuePart, Weight

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/values/value_residual", "value_residual")


@dataclass(frozen=True)
class ValueResidual(ValuePart):
    """v_l <- (1 - s_l) v_l + s_l v_0 in every block l > 0 (Zhou et al. 2024, arXiv 2410.17897, eq. 7, with s learned).
    With s = 0 the values are plain.

    Args:
        weight: s at first.
    """

    weight: float = _DEFAULTS("weight")

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        return {"weight": Weight((), SCALARS, self.weight)} if layer else {}

    def mix(self, weights: Any, values: Tensor, x: Tensor, carried: Carried, layer: int) -> Tensor:
        if not weights.declared:
            carried["values_0"] = values
            return values
        return values.lerp(carried["values_0"].to(values.dtype), weights.weight.to(values.dtype))
