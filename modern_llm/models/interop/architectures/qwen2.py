"""Qwen2 (Yang et al. 2024, arXiv 2407.10671): biases on queries, keys and values."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture, windows_by_layer, written_windows
from modern_llm.models.interop.foreign import ForeignConfig


class Qwen2(Architecture):
    model_type = "qwen2"
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.only("use_mrope", False)
        theirs.changes_nothing("use_sliding_window")  # layer_types and sliding_window say it
        return super().settings(theirs) | windows_by_layer(theirs) | {"qkv_bias": True}

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        windows = written_windows(config)
        return super().keys(config) | windows | {"use_sliding_window": windows["sliding_window"] is not None}
