"""OLMo 2 (OLMo et al. 2025, arXiv 2501.00656): norms behind the branches, and over all query and key heads at once."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture, attention_biases
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.weights import LLAMA, with_layer


class Olmo2(Architecture):
    model_type = "olmo2"
    written = True
    names = with_layer(
        LLAMA, {"attention_end_norm": "post_attention_layernorm", "ffn_end_norm": "post_feedforward_layernorm"}
    )

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        own = {"norm_place": "behind", "qk_norm": True, "qk_norm_per_head": False}
        return super().settings(theirs) | attention_biases(theirs) | own

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        return super().keys(config) | {"attention_bias": config.qkv_bias}
