"""Mistral (Jiang et al. 2023, arXiv 2310.06825): a window in every layer."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture
from modern_llm.models.interop.foreign import ForeignConfig


class Mistral(Architecture):
    model_type = "mistral"
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        return super().settings(theirs) | {"sliding_window": theirs("sliding_window")}

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        return super().keys(config) | {"sliding_window": config.sliding_window}
