"""A gate on what each head gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import GATES
from modern_llm.models.parts.part import HeadPart, Sizes, Weight

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = Defaults("model/heads/gated", "gated")


@dataclass(frozen=True)
class GatedHeads(HeadPart):
    """y_h <- 2 sigmoid(G_h x[:channels]) y_h for every head h: a head may do nothing, for which it otherwise needs a
    token to attend to (Qiu et al. 2025, arXiv 2505.06708; modded-nanogpt, record 28). With G = 0 the heads are plain.

    Args:
        channels: of the normed stream that the gate reads.
    """

    channels: int = _DEFAULTS("channels")

    def check(self, sizes: Sizes) -> None:
        require(1 <= self.channels <= sizes.d_model, "model.heads.gated.channels", self.channels,
                f"must lie between 1 and model.d_model={sizes.d_model}", "Use 12")  # fmt: skip

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        return {"gate": Weight((sizes.n_heads, self.channels), GATES)}

    def apply(self, weights: Any, attended: Tensor, x: Tensor) -> Tensor:
        from torch.nn import functional as F

        gate = 2 * F.linear(x[..., : self.channels], weights.gate).sigmoid()  # (B, T, H)
        return attended * gate[..., None].to(attended.dtype)
