"""What a decoder's hyper-parameters come to: learned numbers and operations. Imports no torch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from modern_llm.models.parameter_kinds import EMBEDDINGS, HEADS, MATRICES, VECTORS

if TYPE_CHECKING:
    from modern_llm.models.config import ModernLLMConfig


def count_parameters(config: ModernLLMConfig, active_only: bool) -> Counter[str]:
    """`ModernLLMConfig.parameters`."""
    d, head, q_heads, kv_heads = config.d_model, config.head_size, config.n_heads, config.n_kv_heads
    if config.vocab_size is None:
        raise ValueError("model.vocab_size=None: the parameter count needs it. Use with_vocab_size first.")
    qkv = (q_heads + 2 * kv_heads) * head
    attention, matrices = d * qkv + q_heads * head * d, 0
    norms = config.norm.vectors * d
    beside = (qkv if config.qkv_bias else 0) + (d if config.o_bias else 0)
    vectors = norms * (4 if config.norm_place == "both" else 2)
    if config.qk_norm and config.qk_gain:
        beside += 2 * head if config.qk_norm_per_head else (q_heads + kv_heads) * head
    if config.active_sinks is not None:
        beside += config.active_sinks.parameter_count(q_heads, kv_heads, head)
    layers, hidden = 1, config.ffn_size
    if config.moe is not None:
        layers, hidden = config.moe.top_k if active_only else config.moe.n_experts, config.expert_size
        matrices += config.moe.n_experts * d
        vectors += config.moe.n_experts if config.moe.router_bias else 0
    matrices += layers * (config.ffn.parts + 1) * d * hidden
    vectors += layers * (config.ffn.parts * hidden + d) if config.ffn_bias else 0
    found = Counter({MATRICES: config.softmax_layers * attention + config.plain_layers * matrices,
                     VECTORS: config.softmax_layers * beside + config.plain_layers * vectors + norms})  # fmt: skip
    found[HEADS] = config.vocab_size * d
    found[EMBEDDINGS] = 0 if config.tie_embeddings else config.vocab_size * d
    return sum((part.counts(config.sizes, layers) for part, layers in config.placed_parts), found)


def count_flops(config: ModernLLMConfig, seq_len: int) -> float:
    """`ModernLLMConfig.flops_per_token`."""
    found = config.parameters(active_only=True)
    multiplied = found.total() - found[EMBEDDINGS]
    along = 0.0
    for layer, view in enumerate(config.views):
        part = config.mixing_part(layer)
        if part is None:
            along += 12 * config.n_heads * config.head_size * min(seq_len, view.reach(seq_len))
        else:
            along += part.flops_per_token(config.sizes, seq_len)
    return 6 * multiplied + along
