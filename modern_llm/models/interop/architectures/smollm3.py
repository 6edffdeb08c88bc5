"""SmolLM3 (Hugging Face 2025): some layers rotate nothing (Yang et al. 2025, arXiv 2501.18795)."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture, biases, repeated, windows_by_layer, written_windows
from modern_llm.models.interop.foreign import ForeignConfig


class SmolLM3(Architecture):
    model_type = "smollm3"
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.changes_nothing("use_sliding_window", "no_rope_layer_interval")  # the lists say it layer by layer
        rotary = repeated("R" if rotates else "N" for rotates in theirs("no_rope_layers"))
        return super().settings(theirs) | windows_by_layer(theirs, rotary=rotary) | biases(theirs)

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        windows = written_windows(config)
        own = {
            "no_rope_layers": [int(view.rotary) for view in config.views],
            "use_sliding_window": windows["sliding_window"] is not None,
            "attention_bias": config.qkv_bias,
            "mlp_bias": config.ffn_bias,
        }
        return super().keys(config) | windows | own
