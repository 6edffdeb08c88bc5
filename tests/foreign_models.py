"""Small configurations of transformers' own classes, by name: what is imported, and compared with."""

from __future__ import annotations

from typing import Any

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
GPT2_SHAPE = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
}


def rope(kind: str, **settings: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 5000.0, **settings}}


LLAMA3 = rope("llama3", factor=4.0, original_max_position_embeddings=16, low_freq_factor=1.0, high_freq_factor=4.0)
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 16}
SLIDING = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 0}
FIRST_FULL = {"num_hidden_layers": 4, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3_MOE = {"head_dim": 16, "moe_intermediate_size": 24, **EXPERTS}
GEMMA = {"head_dim": 16, "num_hidden_layers": 3, "sliding_window": 5, "query_pre_attn_scalar": 20}
# The others can be imported alone.
WRITTEN: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-head-dim": ("llama", {"head_dim": 16}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear": ("llama", rope("linear", factor=4.0)),
    "llama-llama3": ("llama", LLAMA3),
    "llama-yarn": ("llama", rope("yarn", **YARN)),
    "llama-yarn-own-scale": ("llama", rope("yarn", attention_factor=0.8, beta_fast=8.0, beta_slow=2.0, **YARN)),
    "llama-yarn-smooth": ("llama", rope("yarn", truncate=False, **YARN)),
    "llama-geglu": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "llama-gelu-new": ("llama", {"hidden_act": "gelu_new"}),
    "mistral-window": ("mistral", {"sliding_window": 5}),
    "mistral-full": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": ("qwen2", SLIDING),
    "qwen2-some-windows": ("qwen2", FIRST_FULL),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3-window-biases": ("qwen3", {"head_dim": 8, "attention_bias": True, **SLIDING}),
    "mixtral": ("mixtral", {**EXPERTS, "sliding_window": None}),
    "mixtral-window": ("mixtral", {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 5}),
    "qwen3-moe": ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": True}),
    "qwen3-moe-probabilities": ("qwen3_moe", {**QWEN3_MOE, "norm_topk_prob": False, "sliding_window": 5,
                                              "use_sliding_window": True}),
    "qwen3-moe-one": ("qwen3_moe", {**QWEN3_MOE, "num_experts_per_tok": 1, "attention_bias": True}),
    "gpt-oss": ("gpt_oss", {"head_dim": 8, "sliding_window": 5, **EXPERTS, **rope("yarn", truncate=False, **YARN)}),
    "gpt-oss-no-bias": ("gpt_oss", {"head_dim": 16, "layer_types": ["full_attention"] * 2, "attention_bias": False,
                                    "tie_word_embeddings": True, "swiglu_limit": 0.5, **EXPERTS, **rope("default")}),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "smollm3-window-biases": ("smollm3", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 0, 1], "mlp_bias": True,
                                          "attention_bias": True, "use_sliding_window": True, "sliding_window": 5}),
    "olmo2": ("olmo2", {}),
    "olmo2-biases": ("olmo2", {"attention_bias": True, "num_key_value_heads": 4}),
    "gpt2": ("gpt2", {}),
    "gpt2-tied": ("gpt2", {"n_inner": 24, "activation_function": "gelu_pytorch_tanh", "tie_word_embeddings": True}),
    "phi3": ("phi3", {}),
    "phi3-window-partly-rotated": ("phi3", {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 5,
                                            **rope("default", partial_rotary_factor=0.75)}),
}  # fmt: skip
READ: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.4,
                            "logits_scaling": 2.0, "tie_word_embeddings": True}),
    "granite-biases": ("granite", {"attention_multiplier": 0.3, "attention_bias": True, "mlp_bias": True}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}),
    "gemma2-no-caps": ("gemma2", {**GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None,
                                  "attention_bias": True, "tie_word_embeddings": True}),
    "gemma3": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                               "rope_parameters": {
                                   "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                                   "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}),
    "gemma3-windows": ("gemma3_text", {**GEMMA, "layer_types": ["sliding_attention"] * 3,
                                       "final_logit_softcapping": 3.0, "tie_word_embeddings": True}),
}  # fmt: skip
SOURCES = WRITTEN | READ


def foreign_config(family: str, overrides: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **((GPT2_SHAPE if family == "gpt2" else SHAPE) | overrides))
