"""A few tokens side by side in what attention and the feed-forward layer read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import VECTORS
from modern_llm.models.parts.part import Branch, BranchPart, Carried, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/branches/canon", "canon")


@dataclass(frozen=True)
class ShortConvolution(BranchPart):
    """n_t <- n_t + sum_k w_k * n_{t-k}, k = 0 … width - 1, for every channel, of the normed stream n in front of
    attention and of the feed-forward layer (Canon layers A and C, Allen-Zhu 2025, arXiv 2512.17351). With w = 0 the
    branches read n itself. What stands before a token is of its own document and branch.

    Args:
        width: tokens, the own one included.
        places: both, attention or ffn.
    """

    width: int = _DEFAULTS("width")
    places: Literal["both", "attention", "ffn"] = _DEFAULTS("places")

    def __post_init__(self) -> None:
        require(self.width >= 2, "model.branches.canon.width", self.width, "must be at least 2",
                "Leave it out for none: model/branches=plain")  # fmt: skip

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        places = ("attention", "ffn") if self.places == "both" else (self.places,)
        return {place: Weight((self.width, sizes.d_model), VECTORS) for place in places}

    def read(self, weights: Any, normed: Tensor, carried: Carried, branch: Branch, layer: int) -> Tensor:
        from modern_llm.models.short_convolution import short_convolution

        if branch not in weights.declared:
            return normed
        return short_convolution(normed, getattr(weights, branch), carried["before"], (branch, layer))
