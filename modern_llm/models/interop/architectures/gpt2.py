"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, a feed-forward layer without a gate, biases everywhere."""

from __future__ import annotations

from typing import Any

from modern_llm.models.attention.rope import NoRope
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.embedding.learned_positions import LearnedPositions
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.interop.architecture import Architecture, activation
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.weights import TRANSPOSED, Names
from modern_llm.models.norm_kinds import LayerNormKind


class GPT2(Architecture):
    model_type = "gpt2"
    written = True
    names = Names(
        outside={
            "embedding": "transformer.wte",
            "embedding_parts.learned_positions.table": "transformer.wpe.weight",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
        },
        layer={
            "attention_norm": "ln_1",
            "attention.qkv_proj": "attn.c_attn",
            "attention.o_proj": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn.up_proj": "mlp.c_fc",
            "ffn.down_proj": "mlp.c_proj",
        },
        prefix="transformer.h",
        layouts={
            f"{map}.weight": TRANSPOSED for map in ("attention.qkv_proj", "attention.o_proj", "ffn.up_proj",
                                                    "ffn.down_proj")
        },
    )  # fmt: skip

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.changes_nothing("n_ctx", "reorder_and_upcast_attn")
        theirs.changes_nothing(*(f"summary_{key}" for key in ("type", "use_proj", "activation", "proj_to_labels",
                                                              "first_dropout")))  # fmt: skip
        theirs.only("add_cross_attention", False)
        theirs.only("scale_attn_by_inverse_layer_idx", False)
        theirs.only("scale_attn_weights", True)
        d_model, std = theirs("n_embd"), theirs("initializer_range")
        return {
            "vocab_size": theirs("vocab_size"),
            "max_seq_len": theirs("n_positions"),
            "d_model": d_model,
            "n_layers": theirs("n_layer"),
            "n_heads": theirs("n_head"),
            "ffn_hidden_size": theirs("n_inner") or 4 * d_model,
            "ffn": activation(theirs, "activation_function", gated=False),
            "rope": NoRope(),
            "embedding": {"learned_positions": LearnedPositions(std)},
            "norm": LayerNormKind(),
            "norm_eps": theirs("layer_norm_epsilon"),
            "qk_norm": False,
            "qkv_bias": True,
            "o_bias": True,
            "ffn_bias": True,
            "tie_embeddings": theirs("tie_word_embeddings"),
            "dropout": theirs("resid_pdrop"),
            "embedding_dropout": theirs("embd_pdrop"),
            "attention_dropout": theirs("attn_pdrop"),
            "init": GPT2Init(std),
        }

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        positions = config.embedding.get("learned_positions")
        embedding_dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        return {
            "vocab_size": config.vocab_size,
            "n_positions": config.max_seq_len,
            "n_embd": config.d_model,
            "n_layer": config.n_layers,
            "n_head": config.n_heads,
            "n_inner": config.ffn_size,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "resid_pdrop": config.dropout,
            "embd_pdrop": embedding_dropout,
            "attn_pdrop": config.attention_dropout,
            "initializer_range": positions.std if isinstance(positions, LearnedPositions) else 0.02,
            "bos_token_id": None,
            "eos_token_id": None,
        }
