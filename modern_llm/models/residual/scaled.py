"""Learned scales on the residual stream, and a shortcut from the embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import SCALARS
from modern_llm.models.parts.part import Carried, ResidualPart, Sizes, Weight, first_to_last

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/residual/scaled", "scaled")


@dataclass(frozen=True)
class ScaledResidual(ResidualPart):
    """x <- a_l x + b_l x0 in front of every block l, x0 the embedded tokens (Jordan et al. 2024, modded-nanogpt, record
    9). With a = 1 and b = 0 it is the plain stream.

    Args:
        scale_first, scale_last: a at first in the first and the last block, on a straight line between them.
        shortcut_first, shortcut_last: b, likewise.
    """

    scale_first: float = _DEFAULTS("scale_first")
    scale_last: float = _DEFAULTS("scale_last")
    shortcut_first: float = _DEFAULTS("shortcut_first")
    shortcut_last: float = _DEFAULTS("shortcut_last")

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        return {
            "scale": Weight((), SCALARS, first_to_last(self.scale_first, self.scale_last, layer, sizes.n_layers)),
            "shortcut": Weight(
                (), SCALARS, first_to_last(self.shortcut_first, self.shortcut_last, layer, sizes.n_layers)
            ),
        }

    def enter(self, weights: Any, x: Tensor, carried: Carried, layer: int, n_layers: int) -> Tensor:
        return weights.scale * x + weights.shortcut * carried["embedded"]
