"""gpt-oss (OpenAI 2025, arXiv 2508.10925): a learned logit per head in every softmax, windows in some layers, experts
with biases and a clamped SwiGLU.

Its layers without a window see all that the model was made for; behind that, ours see the last `max_seq_len` tokens.
"""

from __future__ import annotations

from typing import Any

from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.sinks import SinkLogits
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.feed_forward.kinds import ClampedSwiGLU, FeedForwardKind
from modern_llm.models.interop.architecture import (
    Architecture,
    attention_biases,
    repeated,
    sliding_layers,
    written_windows,
)
from modern_llm.models.interop.architectures.mixtral import experts, written_experts
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.weights import INTERLEAVED, INTERLEAVED_TRANSPOSED, LLAMA, TRANSPOSED, with_layer


class GptOss(Architecture):
    model_type = "gpt_oss"
    names = with_layer(
        LLAMA,
        {
            "attention.sinks.logits": "self_attn.sinks",
            "ffn.router": "mlp.router",
            "ffn.gate_up_proj": "mlp.experts.gate_up_proj",
            "ffn.gate_up_proj_bias": "mlp.experts.gate_up_proj_bias",
            "ffn.down_proj": "mlp.experts.down_proj",
            "ffn.down_proj_bias": "mlp.experts.down_proj_bias",
        },
        {
            "ffn.gate_up_proj": INTERLEAVED_TRANSPOSED,
            "ffn.gate_up_proj_bias": INTERLEAVED,
            "ffn.down_proj": TRANSPOSED,
        },
    )
    written = True

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        sliding, window = sliding_layers(theirs), theirs("sliding_window")
        theirs.changes_nothing("experts_per_token")  # a second name of num_experts_per_tok
        own = {
            "ffn_bias": True,
            "moe": experts(theirs, router_bias=True),
            "sinks": SinkLogits(),
            "use_attention_sinks": True,
            "layers": LayerPattern(
                repeated("S" if short else "L" for short in sliding), window if any(sliding) else None
            ),
        }
        return super().settings(theirs) | attention_biases(theirs) | own

    def kind(self, theirs: ForeignConfig) -> FeedForwardKind:
        theirs.only("hidden_act", "silu")
        return ClampedSwiGLU(theirs("swiglu_alpha", 1.702), theirs("swiglu_limit", 7.0))

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        clamped = config.ffn if isinstance(config.ffn, ClampedSwiGLU) else ClampedSwiGLU()
        own = {
            "hidden_act": "silu",
            "attention_bias": config.qkv_bias,
            "swiglu_alpha": clamped.slope,
            "swiglu_limit": clamped.limit,
        }
        windows = written_windows(config)
        windows["sliding_window"] = windows["sliding_window"] or config.max_seq_len  # its code asks for a number
        return super().keys(config) | windows | written_experts(config.moe) | own
