"""Qwen3-MoE (Yang et al. 2025, arXiv 2505.09388): Qwen3 with experts in every layer."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture, attention_biases
from modern_llm.models.interop.architectures.mixtral import EXPERTS, experts, written_experts
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.weights import LLAMA, with_layer


class Qwen3Moe(Architecture):
    model_type = "qwen3_moe"
    names = with_layer(LLAMA, EXPERTS)
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.changes_nothing("use_sliding_window", "intermediate_size")
        theirs.only("decoder_sparse_step", 1)
        theirs.only("mlp_only_layers", [])
        own = {
            "ffn_hidden_size": theirs("moe_intermediate_size"),
            "sliding_window": theirs("sliding_window"),
            "qk_norm": True,
            "moe": experts(theirs, shares=theirs("norm_topk_prob"), name="num_experts"),
        }
        return super().settings(theirs) | attention_biases(theirs) | own

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        own = {
            "moe_intermediate_size": config.expert_size,
            "attention_bias": config.qkv_bias,
            "use_sliding_window": config.sliding_window is not None,
            "sliding_window": config.sliding_window,
            "norm_topk_prob": config.moe is not None and config.moe.normalize_weights and config.moe.top_k > 1,
        }
        return super().keys(config) | own | written_experts(config.moe, "num_experts")
