"""From a decoder of ours to a causal language model of transformers."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import NoRope, NTKRope, PlainRope
from modern_llm.models.attention.sinks import LearnableSinks
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.feed_forward.mixture import MoEConfig
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.interop.architectures import ARCHITECTURES
from modern_llm.models.interop.importing import import_config
from modern_llm.models.transformer import ModernDecoderLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FAMILIES = [name for name, architecture in ARCHITECTURES.items() if architecture.written]


def to_hugging_face(model: ModernDecoderLM, family: str | None = None) -> PreTrainedModel:
    """The same model as a `transformers` causal LM, on the CPU; `save_pretrained` then writes a folder.

    Args:
        model: trained or imported.
        family: its `model_type`, one of `FAMILIES`; None: the simplest that can express the model.

    Raises:
        ValueError: the model has parts that the target cannot express; they are named.
    """
    from transformers import AutoModelForCausalLM

    if family is not None and family not in FAMILIES:
        raise ValueError(f"family={family!r}: unknown. Choose among {', '.join(FAMILIES)}.")
    config = model.config
    lost = {}
    for name in FAMILIES if family is None else [family]:
        theirs, lost[name] = _written(config, name)
        if not lost[name]:
            break
    else:
        nearest = min(lost, key=lambda name: len(lost[name]))
        whose = "" if family else "no Hugging Face architecture has all parts of this model; "
        raise ValueError(
            f"{whose}{nearest} cannot express {', '.join(lost[nearest])}. It is used from its run, with "
            "model=from_run model.path=<run folder>."
        )
    exported = AutoModelForCausalLM.from_config(theirs, dtype=model.output_head.weight.dtype)
    known, state = exported.state_dict(), dict[str, Tensor]()
    for ours, weight in model.state_dict().items():
        names, layout = ARCHITECTURES[name].names.of(ours)
        assert layout.save is not None, f"{name} is not written"
        stored = layout.save(weight.cpu(), config)
        state |= zip(names, stored.split([len(known[name]) for name in names]), strict=True)
    # A norm without a weight is theirs with a weight of ones.
    norms = [name for name in known.keys() - state.keys() if name.endswith(("q_norm.weight", "k_norm.weight"))]
    exported.load_state_dict(state | {name: torch.ones_like(known[name]) for name in norms}, strict=True)
    exported.tie_weights()
    return exported.train(model.training)


def _written(config: ModernLLMConfig, family: str) -> tuple[Any, list[str]]:
    """Their configuration of ours, and what of ours it does not say: it is read again, and compared."""
    from transformers import AutoConfig

    try:
        theirs = AutoConfig.for_model(family, **ARCHITECTURES[family].keys(config))
        again = import_config(theirs)
    except Exception as cause:  # of several kinds in transformers' own checks
        return None, [f"this model ({' '.join(str(cause).split())})"]
    return theirs, _differences(config, again)


def _differences(config: ModernLLMConfig, other: ModernLLMConfig) -> list[str]:
    """The keys of `config` that make another function of it than `other` is, with their values."""
    keys = [field.name for field in fields(config)]
    ours, read = _comparable(config), _comparable(other)
    different = [key for key in keys if getattr(ours, key) != getattr(read, key)]
    if type(config.active_sinks) is not type(other.active_sinks):
        different.append("sinks" if config.use_attention_sinks else "use_attention_sinks")
    elif _seen(config) != _seen(other):
        uniform = config.layers == LayerPattern()
        different.append("sliding_window" if uniform else "layers")
    told = [f"model.{key}={getattr(config, key)!r}" for key in different]
    if "sinks" in different and config.sinks.learned_rows == 0:
        told[-1] += " (no weights: set model.use_attention_sinks=false to export)"
    return told


def _seen(config: ModernLLMConfig) -> list[Any]:
    """What each layer sees, and what it is rotated by."""
    unrotated = isinstance(config.rope, NoRope)
    other = config.other_rope
    return [(view._replace(rotary=view.rotary or unrotated), other if view.other_rope else None)
            for view in config.views]  # fmt: skip


def _comparable(config: ModernLLMConfig) -> ModernLLMConfig:
    """The same function with each thing said in one way: nothing of training, nothing left to a default, and
    what layers see left out."""
    moe = config.moe
    if moe is not None:
        shares = moe.normalize_weights and moe.top_k > 1
        moe = MoEConfig(moe.n_experts, moe.top_k, normalize_weights=shares, router_bias=moe.router_bias)
    rope = config.rope
    if isinstance(rope, NTKRope):
        rope = PlainRope(rope.scaled_theta(rope.turned(config.head_size)), fraction=rope.fraction)
    return replace(
        config,
        rope=rope,
        head_dim=config.head_size,
        ffn_hidden_size=config.ffn_size if moe is None else config.expert_size,
        moe=moe,
        qk_gain=True,
        qk_norm_per_head=config.qk_norm_per_head or not config.qk_norm,
        sliding_window=None,
        layers=LayerPattern(),
        use_attention_sinks=False,
        sinks=LearnableSinks(),
        dropout=0.0,
        embedding_dropout=None,
        attention_dropout=0.0,
        ffn_dropout=0.0,
        output_dropout=0.0,
        init=GPT2Init(),
    )
