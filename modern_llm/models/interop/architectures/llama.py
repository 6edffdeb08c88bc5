"""Llama (Touvron et al. 2023, arXiv 2302.13971; Grattafiori et al. 2024, arXiv 2407.21783), and SmolLM2."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture, biases
from modern_llm.models.interop.foreign import ForeignConfig


class Llama(Architecture):
    model_type = "llama"
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.only("rope_interleaved", False)  # SmolLM2 says so
        return super().settings(theirs) | biases(theirs)

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        return super().keys(config) | {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}
