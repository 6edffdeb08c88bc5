"""Gemma 3, text alone (Kamath et al. 2025, arXiv 2503.19786): Gemma 2 with norms on queries and keys in place of the
cap on their scores, and another rotary base where a layer has a window."""

from __future__ import annotations

from typing import Any

from modern_llm.models.attention.rope import PlainRope
from modern_llm.models.interop.architecture import repeated, windows_by_layer
from modern_llm.models.interop.architectures.gemma2 import Gemma2
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.rope import rope_of


class Gemma3(Gemma2):
    model_type = "gemma3_text"

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.only("attn_logit_softcapping")  # transformers' own code leaves it out
        return super().settings(theirs) | {"attention_softcap": None, "qk_norm": True}

    def rope(self, theirs: ForeignConfig) -> PlainRope:
        """That of the layers without a window, or of all where all have one."""
        kind = "sliding_attention" if "full_attention" not in theirs("layer_types") else "full_attention"
        return rope_of(theirs, theirs("rope_parameters")[kind])

    def windows(self, theirs: ForeignConfig) -> dict[str, Any]:
        kinds = theirs("layer_types")
        if len(set(kinds)) == 1:
            return windows_by_layer(theirs)
        other = rope_of(theirs, theirs("rope_parameters")["sliding_attention"])
        if type(other) is not PlainRope:
            theirs.refuse("rope_parameters", "the layers with a window must have the default type")
        rotary = repeated("B" if kind == "sliding_attention" else "R" for kind in kinds)
        return windows_by_layer(theirs, rotary=rotary, other_theta=other.theta)
