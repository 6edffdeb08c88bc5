"""Granite (IBM 2024): Llama with four fixed multipliers."""

from __future__ import annotations

from typing import Any

from modern_llm.models.interop.architecture import Architecture, biases
from modern_llm.models.interop.foreign import ForeignConfig


class Granite(Architecture):
    model_type = "granite"

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        settings = super().settings(theirs) | biases(theirs)
        head_size = settings["head_dim"] or settings["d_model"] // settings["n_heads"]
        return settings | {
            "embedding_scale": theirs("embedding_multiplier"),
            "attention_scale": theirs("attention_multiplier") * head_size**0.5,  # theirs stands for 1 / sqrt(head_dim)
            "branch_scale": theirs("residual_multiplier"),
            "logit_scale": 1 / theirs("logits_scaling"),
        }
