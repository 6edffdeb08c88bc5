"""Weights from and to Hugging Face's Llama family: Llama, Mistral, Qwen2, Qwen3, Mixtral (and SmolLM2, a Llama).

Import reads a `transformers` model or a folder; export gives a `transformers` model, whose `save_pretrained` writes
the folder. What the other side cannot express is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modern_llm.hub import find_model
from modern_llm.models.attention.rope import LinearRope, Llama3Rope, NoRope, NTKRope, PlainRope, YarnRope
from modern_llm.models.config import GQAConfig, ModernLLMConfig, MoEConfig
from modern_llm.models.feed_forward.kinds import GeGLU, SwiGLU
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.transformer import ModernDecoderLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# What each architecture can express beyond the plain decoder, the simplest first.
_FAMILIES = {
    "llama": set[str](),
    "mistral": {"sliding_window"},
    "qwen2": {"qkv_bias", "sliding_window"},
    "qwen3": {"qk_norm", "sliding_window"},
    "mixtral": {"moe", "sliding_window"},
}
# Of transformers' `hidden_act`; a function may have several names.
_KINDS: dict[str, type[SwiGLU | GeGLU]] = {
    "silu": SwiGLU,
    "swish": SwiGLU,
    "gelu_pytorch_tanh": GeGLU,
    "gelu_new": GeGLU,
}


def from_hugging_face(source: str | Path | PreTrainedModel) -> ModernDecoderLM:
    """The same model as a `ModernDecoderLM`, in the dtype of the source; logits agree.

    Args:
        source: a loaded causal model of one of the families above, a folder, or a name that is looked for in the
            mirror, the local cache and the hub.

    Raises:
        ValueError: an architecture or a part that `ModernDecoderLM` does not have, by name.
    """
    if isinstance(source, str | Path):
        from transformers import AutoModelForCausalLM

        source = AutoModelForCausalLM.from_pretrained(find_model(str(source)))
    config = import_config(source.config)
    weights = source.state_dict()
    with torch.device("meta"):
        model = ModernDecoderLM(config)
    ours = _from_their_names(weights, config)
    model.load_state_dict(ours, strict=True, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    model.rotary = type(model.rotary)(config.rope, config.head_size, config.max_seq_len).to(source.device)
    return model.requires_grad_(True).train(source.training)


def import_config(theirs: Any) -> ModernLLMConfig:
    """`ModernLLMConfig` of a transformers configuration.

    Raises:
        ValueError: as in `from_hugging_face`.
    """
    if theirs.model_type not in _FAMILIES:
        raise ValueError(
            f"model_type={theirs.model_type!r}: not an architecture that ModernDecoderLM matches. "
            f"Supported: {', '.join(_FAMILIES)}."
        )
    refused = [
        f"{key}={getattr(theirs, key)!r}" for key in ("attention_bias", "mlp_bias") if getattr(theirs, key, False)
    ]
    if theirs.hidden_act not in _KINDS:
        refused.append(f"hidden_act={theirs.hidden_act!r}")
    kinds = set(getattr(theirs, "layer_types", None) or [])
    if len(kinds) > 1:
        refused.append(f"layer_types={sorted(kinds)} mixed")
    if theirs.model_type == "mixtral" and theirs.num_experts_per_tok == 1:
        refused.append("num_experts_per_tok=1, whose weight Mixtral makes 1")
    rope = _import_rope(theirs, refused)
    if refused:
        raise ValueError(f"{theirs.model_type}: ModernDecoderLM cannot express {', '.join(refused)}.")
    window = getattr(theirs, "sliding_window", None)
    if kinds == {"full_attention"} or not getattr(theirs, "use_sliding_window", True):
        window = None
    moe = None
    if theirs.model_type == "mixtral":
        moe = MoEConfig(
            n_experts=theirs.num_local_experts,
            top_k=theirs.num_experts_per_tok,
            balance_loss_weight=theirs.router_aux_loss_coef,
        )
    head_dim = getattr(theirs, "head_dim", None)
    return ModernLLMConfig(
        vocab_size=theirs.vocab_size,
        max_seq_len=theirs.max_position_embeddings,
        d_model=theirs.hidden_size,
        n_layers=theirs.num_hidden_layers,
        n_heads=theirs.num_attention_heads,
        head_dim=None if head_dim == theirs.hidden_size // theirs.num_attention_heads else head_dim,
        ffn_hidden_size=theirs.intermediate_size,
        ffn=_KINDS[theirs.hidden_act](),
        rope=rope,
        gqa=GQAConfig(theirs.num_attention_heads // theirs.num_key_value_heads),
        moe=moe,
        sliding_window=window,
        qk_norm=theirs.model_type == "qwen3",
        qkv_bias=theirs.model_type == "qwen2",
        tie_embeddings=theirs.tie_word_embeddings,
        norm_eps=theirs.rms_norm_eps,
        init=GPT2Init(theirs.initializer_range),
    )


def _import_rope(theirs: Any, refused: list[str]) -> PlainRope:
    settings = dict(theirs.rope_parameters)
    kind, theta = settings.get("rope_type", "default"), float(settings["rope_theta"])
    if settings.get("partial_rotary_factor", 1.0) != 1.0:
        refused.append(f"partial_rotary_factor={settings['partial_rotary_factor']}")
    if kind == "default":
        return PlainRope(theta)
    original = settings.get("original_max_position_embeddings") or theirs.max_position_embeddings
    factor = float(settings.get("factor") or theirs.max_position_embeddings / original)
    if kind == "linear":
        return LinearRope(theta, factor)
    if kind == "llama3":
        return Llama3Rope(theta, factor, original, settings["low_freq_factor"], settings["high_freq_factor"])
    if kind == "yarn":
        scale = settings.get("attention_factor")
        if scale is None and settings.get("mscale") and settings.get("mscale_all_dim"):
            refused.append("mscale")
        return YarnRope(
            theta,
            factor,
            original,
            settings.get("beta_fast") or 32.0,
            settings.get("beta_slow") or 1.0,
            scale,
            settings.get("truncate", True),
        )
    refused.append(f"rope_type={kind!r}")
    return PlainRope(theta)


def _layer_names(config: ModernLLMConfig) -> dict[str, list[str]]:
    """Per layer: our name -> their names, stacked along the first dimension."""
    names = {
        "attention_norm.weight": ["input_layernorm.weight"],
        "ffn_norm.weight": ["post_attention_layernorm.weight"],
        "attention.qkv_proj.weight": [f"self_attn.{part}_proj.weight" for part in "qkv"],
        "attention.o_proj.weight": ["self_attn.o_proj.weight"],
    }
    if config.qkv_bias:
        names["attention.qkv_proj.bias"] = [f"self_attn.{part}_proj.bias" for part in "qkv"]
    if config.qk_norm and config.qk_gain:
        names |= {f"attention.{part}_norm.weight": [f"self_attn.{part}_norm.weight"] for part in "qk"}
    if config.moe is None:
        names["ffn.gate_up_proj.weight"] = ["mlp.gate_proj.weight", "mlp.up_proj.weight"]
        names["ffn.down_proj.weight"] = ["mlp.down_proj.weight"]
    else:
        names["ffn.router.weight"] = ["mlp.gate.weight"]
        names |= {f"ffn.{part}_proj": [f"mlp.experts.{part}_proj"] for part in ("gate_up", "down")}
    return names


def _all_names(config: ModernLLMConfig) -> dict[str, list[str]]:
    names = {"embedding.weight": ["model.embed_tokens.weight"], "final_norm.weight": ["model.norm.weight"]}
    names["head.weight"] = ["model.embed_tokens.weight"] if config.tie_embeddings else ["lm_head.weight"]
    for layer in range(config.n_layers):
        for ours, theirs in _layer_names(config).items():
            names[f"blocks.{layer}.{ours}"] = [f"model.layers.{layer}.{name}" for name in theirs]
    return names


def _from_their_names(weights: dict[str, Tensor], config: ModernLLMConfig) -> dict[str, Tensor]:
    names = _all_names(config)
    missing = sorted({name for parts in names.values() for name in parts if name not in weights})
    if missing:
        raise ValueError(f"the source has no weight {missing[0]!r} ({len(missing)} missing). Is it a causal LM?")
    # Copies: the new model must not share memory with the old one.
    return {ours: torch.cat([weights[name] for name in parts]).clone() for ours, parts in names.items()}


def to_hugging_face(model: ModernDecoderLM, family: str | None = None) -> PreTrainedModel:
    """The same model as a `transformers` causal LM, on the CPU; `save_pretrained` then writes a folder.

    Args:
        model: trained or imported.
        family: one of llama, mistral, qwen2, qwen3, mixtral; None: the simplest that can express the model.

    Raises:
        ValueError: the model has parts that the target cannot express; they are named.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = model.config
    parts = {part for part in ("sliding_window", "qkv_bias", "qk_norm", "moe") if getattr(config, part)}
    if config.active_sinks is not None:
        kind = type(config.active_sinks).__name__
        free = config.active_sinks.learned_rows == 0
        parts.add(f"{kind} (no weights: set use_attention_sinks=false to export)" if free else kind)
    if isinstance(config.rope, NoRope):
        parts.add("NoRope")
    if config.ffn.hugging_face is None:
        parts.add(type(config.ffn).__name__)
    parts |= {type(part).__name__ for part in config.parts}
    if len(set(config.views)) > 1:
        parts.add("layers that see differently")
    if config.logit_softcap is not None:
        parts.add("logit_softcap")
    if config.attention_scale != 1:
        parts.add("attention_scale")
    if config.moe is not None and config.moe.top_k == 1:
        parts.add("top_k=1 (Mixtral gives the single expert the weight 1, not its probability)")
    candidates = [family] if family is not None else list(_FAMILIES)
    if family is not None and family not in _FAMILIES:
        raise ValueError(f"family={family!r}: unknown. Choose among {', '.join(_FAMILIES)}.")
    # Qwen2 always has biases and Qwen3 always has norms, Mixtral always has experts.
    required = {"qwen2": {"qkv_bias"}, "qwen3": {"qk_norm"}, "mixtral": {"moe"}}
    target = next((f for f in candidates if parts <= _FAMILIES[f] and required.get(f, set()) <= parts), None)
    if target is None:
        known = set().union(*(_FAMILIES[f] for f in candidates))
        unknown = sorted(parts - known) or sorted(parts) or ["a decoder without its special parts"]
        whose = f"{family} cannot express" if family else "no Hugging Face family can express all parts of this model"
        raise ValueError(
            f"{whose}: {', '.join(unknown)}. It is used from its run, with model=from_run model.path=<run folder>."
        )
    theirs = AutoConfig.for_model(target, **_their_settings(config, target))
    exported = AutoModelForCausalLM.from_config(theirs, dtype=model.output_head.weight.dtype)
    weights = model.state_dict()
    state: dict[str, Tensor] = {}
    for ours, names in _all_names(config).items():
        state.update(zip(names, _split(weights[ours].cpu(), ours, config, len(names)), strict=True))
    known = exported.state_dict()
    # A norm without a weight is theirs with a weight of ones.
    state |= {name: torch.ones_like(known[name]) for name in known if name.endswith(("q_norm.weight", "k_norm.weight"))
              and name not in state}  # fmt: skip
    exported.load_state_dict(state, strict=not config.tie_embeddings)
    exported.tie_weights()
    return exported.train(model.training)


def _split(weight: Tensor, name: str, config: ModernLLMConfig, parts: int) -> list[Tensor]:
    if parts == 1:
        return [weight]
    if "qkv" in name:
        kv = config.n_kv_heads * config.head_size
        return list(weight.split([config.n_heads * config.head_size, kv, kv]))
    return list(weight.chunk(parts))


def _their_settings(config: ModernLLMConfig, family: str) -> dict[str, Any]:
    rope = config.rope
    assert isinstance(rope, PlainRope)
    theta = rope.scaled_theta(config.head_size) if isinstance(rope, NTKRope) else rope.theta
    rope_parameters: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if isinstance(rope, LinearRope):
        rope_parameters |= {"rope_type": "linear", "factor": rope.factor}
    elif isinstance(rope, Llama3Rope | YarnRope):
        rope_parameters |= {"factor": rope.factor, "original_max_position_embeddings": rope.original_max_seq_len}
    if isinstance(rope, Llama3Rope):
        rope_parameters |= {
            "rope_type": "llama3",
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
        }
    elif isinstance(rope, YarnRope):
        rope_parameters |= {
            "rope_type": "yarn",
            "beta_fast": rope.beta_fast,
            "beta_slow": rope.beta_slow,
            "attention_factor": rope.attention_scale,
            "truncate": rope.truncate,
        }
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "hidden_act": config.ffn.hugging_face,
        "intermediate_size": config.ffn_size if config.moe is None else config.expert_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_size,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **({"initializer_range": config.init.std} if isinstance(config.init, GPT2Init) else {}),
        "rope_parameters": rope_parameters,
        # Ids of the tokenizer, not of the model: transformers' defaults would point at arbitrary tokens.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if family in ("mistral", "mixtral"):
        settings["sliding_window"] = config.sliding_window
    if family in ("qwen2", "qwen3"):
        settings |= {
            "use_sliding_window": config.sliding_window is not None,
            "sliding_window": config.sliding_window,
            "max_window_layers": 0,
        }
    if config.moe is not None:
        settings |= {
            "num_local_experts": config.moe.n_experts,
            "num_experts_per_tok": config.moe.top_k,
            "router_aux_loss_coef": config.moe.balance_loss_weight,
        }
    return settings
