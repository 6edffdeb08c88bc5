"""A few tokens side by side in queries, keys and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import VECTORS
from modern_llm.models.parts.part import Carried, ProjectionPart, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/projections/canon", "canon")


@dataclass(frozen=True)
class ProjectionConvolution(ProjectionPart):
    """p_t <- p_t + sum_k w_k * p_{t-k}, k = 0 … width - 1, for every channel of queries, keys and values as they were
    projected, in front of norms and rotation (Canon layer B, Allen-Zhu 2025, arXiv 2512.17351). With w = 0 they stay.
    What stands before a token is of its own document and branch.

    Args:
        width: tokens, the own one included.
    """

    width: int = _DEFAULTS("width")

    def __post_init__(self) -> None:
        require(self.width >= 2, "model.projections.canon.width", self.width, "must be at least 2",
                "Leave it out for none: model/projections=plain")  # fmt: skip

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        return {"kernel": Weight((self.width, sizes.projected), VECTORS)}

    def change(self, weights: Any, projected: Tensor, carried: Carried, layer: int) -> Tensor:
        from modern_llm.models.short_convolution import short_convolution

        return short_convolution(projected, weights.kernel, carried["before"], ("projections", layer))
