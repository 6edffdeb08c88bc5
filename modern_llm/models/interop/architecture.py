"""What an architecture of transformers says of itself: how its configuration is read, where its weights lie, and, where
models are exported to it, how its configuration is written. `architectures/` has one file for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from modern_llm.models.attention.grouping import GQAConfig
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import NoRope, PlainRope
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.feed_forward.kinds import GELU, FeedForwardKind, GeGLU, SwiGLU
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.rope import read_rope, written_rope
from modern_llm.models.interop.weights import LLAMA, Names

# Of transformers' `hidden_act`; a function may have several names, of which the first is written.
_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_GATED: dict[type[FeedForwardKind], tuple[str, ...]] = {SwiGLU: ("silu", "swish"), GeGLU: _TANH_GELU}
_UNGATED: dict[type[FeedForwardKind], tuple[str, ...]] = {GELU: _TANH_GELU}


class Architecture:
    """What all that descend from Llama share.

    Attributes:
        model_type: its name in transformers.
        names: of its weights.
        written: whether models can be exported to it.
    """

    model_type: ClassVar[str]
    names: ClassVar[Names] = LLAMA
    written: ClassVar[bool] = False

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        """Arguments of `ModernLLMConfig`; refuses in `theirs` what has none."""
        heads = theirs("num_attention_heads")
        head_dim = theirs("head_dim", None)
        return {
            "vocab_size": theirs("vocab_size"),
            "max_seq_len": theirs("max_position_embeddings"),
            "d_model": theirs("hidden_size"),
            "n_layers": theirs("num_hidden_layers"),
            "n_heads": heads,
            "head_dim": None if head_dim == theirs("hidden_size") / heads else head_dim,
            "ffn_hidden_size": theirs("intermediate_size"),
            "ffn": self.kind(theirs),
            "rope": self.rope(theirs),
            "gqa": GQAConfig(heads // theirs("num_key_value_heads")),
            "qk_norm": False,
            "tie_embeddings": theirs("tie_word_embeddings"),
            "norm_eps": theirs("rms_norm_eps"),
            "attention_dropout": theirs("attention_dropout") or 0.0,
            "init": GPT2Init(theirs("initializer_range")),
        }

    def kind(self, theirs: ForeignConfig) -> FeedForwardKind:
        """The feed-forward layer."""
        return activation(theirs, "hidden_act")

    def rope(self, theirs: ForeignConfig) -> PlainRope | NoRope:
        """The rotary variant."""
        return read_rope(theirs)

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        """Their configuration, for export. It may say less than `config` has: that is found out by reading it again."""
        init = {"initializer_range": config.init.std} if isinstance(config.init, GPT2Init) else {}
        return {
            "vocab_size": config.vocab_size,
            "hidden_size": config.d_model,
            "hidden_act": _GATED.get(type(config.ffn), ("silu",))[0],
            "intermediate_size": config.ffn_size if config.moe is None else config.expert_size,
            "num_hidden_layers": config.n_layers,
            "num_attention_heads": config.n_heads,
            "num_key_value_heads": config.n_kv_heads,
            "head_dim": config.head_size,
            "max_position_embeddings": config.max_seq_len,
            "rms_norm_eps": config.norm_eps,
            "tie_word_embeddings": config.tie_embeddings,
            "attention_dropout": config.attention_dropout,
            "rope_parameters": written_rope(config),
            # Ids of the tokenizer, not of the model: transformers' defaults would point at arbitrary tokens.
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            **init,
        }


def activation(theirs: ForeignConfig, key: str, gated: bool = True) -> FeedForwardKind:
    """The kind of feed-forward layer with the function that a key names."""
    name = theirs(key)
    for kind, known in (_GATED if gated else _UNGATED).items():
        if name in known:
            return kind()
    theirs.refuse(key)
    return SwiGLU()


def attention_biases(theirs: ForeignConfig) -> dict[str, Any]:
    """`attention_bias`: on queries, keys, values and what the heads give."""
    biased = bool(theirs("attention_bias", False))
    return {"qkv_bias": biased, "o_bias": biased}


def biases(theirs: ForeignConfig) -> dict[str, Any]:
    """`attention_bias` and `mlp_bias`."""
    return {**attention_biases(theirs), "ffn_bias": bool(theirs("mlp_bias", False))}


def sliding_layers(theirs: ForeignConfig) -> list[bool]:
    """Which layers see a window alone, by `layer_types`."""
    kinds = theirs("layer_types")
    for kind in sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        theirs.refuse("layer_types", kind)
    return [kind == "sliding_attention" and theirs("sliding_window") is not None for kind in kinds]


def windows_by_layer(theirs: ForeignConfig, **pattern: Any) -> dict[str, Any]:
    """Windows of the layers that `layer_types` says.

    Args:
        pattern: what else differs between layers, of `LayerPattern`.
    """
    sliding, window = sliding_layers(theirs), theirs("sliding_window")
    if any(sliding) and not all(sliding):
        pattern |= {"windows": repeated("S" if short else "L" for short in sliding), "short_window": window}
    return {"sliding_window": window if all(sliding) else None, "layers": LayerPattern(**pattern)}


def written_windows(config: ModernLLMConfig) -> dict[str, Any]:
    """`layer_types` and `sliding_window` of a decoder. Several windows are one there, and the narrowest is written."""
    whole = None if config.use_attention_sinks else config.sliding_window
    if "S" in config.layers.windows:
        whole = min(view.window for view in config.views if view.window is not None)
    sliding = [view.window is not None and view.window == whole for view in config.views]
    return {
        "sliding_window": whole,
        "layer_types": ["sliding_attention" if short else "full_attention" for short in sliding],
    }


def repeated(letters: Iterable[str]) -> str:
    """The shortest pattern that, repeated, gives the letters of all layers."""
    whole = "".join(letters)
    sizes = range(1, len(whole) + 1)
    return next(whole[:n] for n in sizes if (whole[:n] * len(whole))[: len(whole)] == whole)
