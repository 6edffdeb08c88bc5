"""Gemma 2 (Riviere et al. 2024, arXiv 2408.00118): norms on both sides of a branch, soft caps, windows in every second
layer, scaled embeddings."""

from __future__ import annotations

from typing import Any

from modern_llm.models.feed_forward.kinds import FeedForwardKind
from modern_llm.models.interop.architecture import Architecture, activation, attention_biases, windows_by_layer
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.weights import LLAMA, PLUS_ONE, with_layer

NAMES = with_layer(
    LLAMA,
    {
        "attention_end_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_end_norm": "post_feedforward_layernorm",
    },
    {
        f"{norm}.weight": PLUS_ONE
        for norm in ("attention_norm", "attention_end_norm", "ffn_norm", "ffn_end_norm", "attention.q_norm",
                     "attention.k_norm", "final_norm")
    },
)  # fmt: skip


class Gemma2(Architecture):
    model_type = "gemma2"
    names = NAMES

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.changes_nothing("hidden_act")  # hidden_activation is used
        theirs.only("use_bidirectional_attention", False)
        return {
            **super().settings(theirs),
            **attention_biases(theirs),
            **self.windows(theirs),
            "attention_scale": (theirs("head_dim") / theirs("query_pre_attn_scalar")) ** 0.5,
            "attention_softcap": theirs("attn_logit_softcapping"),
            "logit_softcap": theirs("final_logit_softcapping"),
            "embedding_scale": theirs("hidden_size") ** 0.5,
            "norm_place": "both",
        }

    def kind(self, theirs: ForeignConfig) -> FeedForwardKind:
        return activation(theirs, "hidden_activation")

    def windows(self, theirs: ForeignConfig) -> dict[str, Any]:
        """What differs between layers."""
        return windows_by_layer(theirs)
