"""What stands in the place of softmax attention, as a module of a block."""

from __future__ import annotations

from torch import Tensor, nn

from modern_llm.models.attention.kv_cache import DecoderCache
from modern_llm.models.attention.layer import Attention
from modern_llm.models.attention.plan import AttentionPlan
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.parts.module import PartModule
from modern_llm.models.parts.part import AttentionPart, Carried, Sizes, State


class OtherAttention(nn.Module):
    """An `AttentionPart` with its weights.

    Args:
        part: as it is configured.
        sizes: of the model.
        layer: of the block that it stands in.
    """

    def __init__(self, part: AttentionPart, sizes: Sizes, layer: int) -> None:
        super().__init__()
        self.part, self.sizes, self.layer = part, sizes, layer
        self.own = PartModule(part, part.weights(sizes, layer), layer)

    def forward(self, x: Tensor, plan: AttentionPlan, carried: Carried, cache: DecoderCache | None = None) -> Tensor:
        """x: (B, T, d_model). Returns the same shape."""
        state = None if cache is None else State(cache.last, self.layer)
        return self.part.mix(self.own, self.sizes, x, plan, carried, state)


def attention_of(config: ModernLLMConfig, layer: int) -> Attention | OtherAttention:
    """What a block has along the text."""
    if config.attention is None or config.has_softmax(layer):
        return Attention(config, layer)
    return OtherAttention(config.attention, config.sizes, layer)
