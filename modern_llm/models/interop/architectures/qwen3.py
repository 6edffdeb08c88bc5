"""Qwen3 (Yang et al. 2025, arXiv 2505.09388): RMSNorm on each query and key head."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture, attention_biases, windows_by_layer, written_windows
from modern_llm.models.interop.foreign import ForeignConfig


class Qwen3(Architecture):
    model_type = "qwen3"
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.changes_nothing("use_sliding_window")  # layer_types and sliding_window say it
        return super().settings(theirs) | windows_by_layer(theirs) | attention_biases(theirs) | {"qk_norm": True}

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        windows = written_windows(config)
        others = {"use_sliding_window": windows["sliding_window"] is not None, "attention_bias": config.qkv_bias}
        return super().keys(config) | windows | others
