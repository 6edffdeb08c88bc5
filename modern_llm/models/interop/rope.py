"""Rotary variants as transformers writes them."""

from __future__ import annotations

from typing import Any

from modern_llm.models.attention.rope import LinearRope, Llama3Rope, NoRope, NTKRope, PlainRope, YarnRope
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.foreign import ForeignConfig

_KEYS = {
    "default": set[str](),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor"},
    "yarn": {"factor", "beta_fast", "beta_slow", "attention_factor", "truncate"},
}


def read_rope(theirs: ForeignConfig, partial: bool = False) -> PlainRope:
    """That of a whole model.

    Args:
        partial: whether the architecture knows heads that are rotated in part.
    """
    return rope_of(theirs, theirs("rope_parameters"), partial)


def rope_of(theirs: ForeignConfig, parameters: dict[str, Any], partial: bool = False) -> PlainRope:
    """One set of parameters; what cannot be expressed is refused in `theirs`."""
    settings = {key: value for key, value in parameters.items() if value is not None}
    kind, theta = settings.pop("rope_type", "default"), float(settings.pop("rope_theta"))
    fraction = float(settings.pop("partial_rotary_factor", 1.0))
    longest = theirs("max_position_embeddings")
    original = settings.pop("original_max_position_embeddings", longest)
    unknown = sorted(settings.keys() - _KEYS.get(kind, set()) - {"type"})
    if kind not in _KEYS or unknown or (fraction != 1 and not partial):
        key = f"rope_type={kind!r}" if kind not in _KEYS else unknown[0] if unknown else "partial_rotary_factor"
        theirs.refuse("rope_parameters", key)
        return PlainRope(theta)
    factor = float(settings.get("factor") or longest / original)
    if kind == "linear":
        return LinearRope(theta, factor, fraction=fraction)
    if kind == "llama3":
        low, high = settings["low_freq_factor"], settings["high_freq_factor"]
        return Llama3Rope(theta, factor, original, low, high, fraction=fraction)
    if kind == "yarn":
        beta_fast, beta_slow = settings.get("beta_fast") or 32.0, settings.get("beta_slow") or 1.0
        scale, truncate = settings.get("attention_factor"), settings.get("truncate", True)
        return YarnRope(theta, factor, original, beta_fast, beta_slow, scale, truncate, fraction=fraction)
    return PlainRope(theta, fraction=fraction)


def written_rope(config: ModernLLMConfig) -> dict[str, Any]:
    """The parameters of a decoder's variant; of one that they do not know, the nearest."""
    rope = config.rope
    if isinstance(rope, NoRope):
        return {"rope_type": "default", "rope_theta": 10000.0}
    theta = rope.scaled_theta(rope.turned(config.head_size)) if isinstance(rope, NTKRope) else rope.theta
    written: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if isinstance(rope, LinearRope):
        written |= {"rope_type": "linear", "factor": rope.factor}
    elif isinstance(rope, Llama3Rope | YarnRope):
        written |= {"factor": rope.factor, "original_max_position_embeddings": rope.original_max_seq_len}
    if isinstance(rope, Llama3Rope):
        bounds = {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
        written |= {"rope_type": "llama3", **bounds}
    elif isinstance(rope, YarnRope):
        ramp = {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
        written |= {"rope_type": "yarn", **ramp, "attention_factor": rope.attention_scale}
    return written
