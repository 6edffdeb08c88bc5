"""What stands in the place of softmax attention or of a whole block, as a module."""

from __future__ import annotations

from torch import Tensor, nn

from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.plan import AttentionPlan
from modern_llm.models.parts.module import PartModule
from modern_llm.models.parts.part import Carried, MixingPart, Sizes, State


class Mixing(nn.Module):
    """A `MixingPart` with its weights.

    Args:
        part: as it is configured.
        sizes: of the model.
        layer: of the block that it stands in, or stands for.
    """

    def __init__(self, part: MixingPart, sizes: Sizes, layer: int) -> None:
        super().__init__()
        self.part, self.sizes, self.layer = part, sizes, layer
        self.own = PartModule(part, part.weights(sizes, layer), layer)

    def forward(self, x: Tensor, plan: AttentionPlan, carried: Carried, cache: DecoderCache | None = None) -> Tensor:
        """x: (B, T, d_model). Returns the same shape."""
        state = None if cache is None else State(cache, self.layer)
        return self.part.mix(self.own, self.sizes, x, plan, carried, state)
