"""Skips from the first half of the blocks to the second."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import SCALARS
from modern_llm.models.parts.part import Carried, ResidualPart, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/residual/unet", "unet")


@dataclass(frozen=True)
class UNetSkips(ResidualPart):
    """x <- x + s_l x_m in front of block l = L - 1 - m of the second half, x_m what left block m (Ronneberger et al.
    2015, arXiv 1505.04597; modded-nanogpt, record 11). With s = 0 it is the plain stream.

    Args:
        weight: s at first.
    """

    weight: float = _DEFAULTS("weight")

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        return {"weight": Weight((), SCALARS, self.weight)} if 2 * layer >= sizes.n_layers + sizes.n_layers % 2 else {}

    def check(self, sizes: Sizes) -> None:
        require(sizes.n_layers >= 2, "model.residual.unet", sizes.n_layers, "needs at least 2 blocks to skip between",
                "Raise model.n_layers, or leave it out: model/residual=plain")  # fmt: skip

    def enter(self, weights: Any, x: Tensor, carried: Carried, layer: int, n_layers: int) -> Tensor:
        if not hasattr(weights, "weight"):
            return x
        return x + weights.weight * carried[f"unet_{n_layers - 1 - layer}"]

    def leave(self, weights: Any, x: Tensor, carried: Carried, layer: int, n_layers: int) -> None:
        if 2 * (layer + 1) <= n_layers:
            carried[f"unet_{layer}"] = x
