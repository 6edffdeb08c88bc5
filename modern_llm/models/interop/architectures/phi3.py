"""Phi-3 and Phi-4-mini (Abdin et al. 2024, arXiv 2404.14219): fused projections, heads that are rotated in part."""

from __future__ import annotations

from typing import Any

from modern_llm.models.attention.rope import PlainRope
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.rope import read_rope, written_rope
from modern_llm.models.interop.weights import LLAMA, PARTLY_TURNED, with_layer


class Phi3(Architecture):
    model_type = "phi3"
    written = True
    names = with_layer(
        LLAMA,
        {"attention.qkv_proj": "self_attn.qkv_proj", "ffn.gate_up_proj": "mlp.gate_up_proj"},
        {"attention.qkv_proj.weight": PARTLY_TURNED},
    )

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        for bias in ("attention_bias", "mlp_bias", "lm_head_bias"):  # written by some, and its code knows none of them
            theirs.only(bias, False)
        theirs.changes_nothing("original_max_position_embeddings", "partial_rotary_factor")  # rope_parameters says it
        theirs.changes_nothing("embd_pdrop")  # its code does not apply it
        own = {"sliding_window": theirs("sliding_window"), "dropout": theirs("resid_pdrop"), "embedding_dropout": 0.0}
        return super().settings(theirs) | own

    def rope(self, theirs: ForeignConfig) -> PlainRope:
        return read_rope(theirs, partial=True)

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        fraction = config.rope.fraction if isinstance(config.rope, PlainRope) else 1.0
        return super().keys(config) | {
            "sliding_window": config.sliding_window,
            "resid_pdrop": config.dropout,
            "rope_parameters": written_rope(config) | {"partial_rotary_factor": fraction},
        }
