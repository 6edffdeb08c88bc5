"""Tensors in, tensors out: the decoder, its parts, the verifier, generation and Hugging Face interop.

Names load on first use, so that checking a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modern_llm.models.config import ModernLLMConfig
    from modern_llm.models.decoding.generation import generate, generate_text, stream_tokens
    from modern_llm.models.feed_forward.mixture import MoEConfig
    from modern_llm.models.interop.exporting import to_hugging_face
    from modern_llm.models.interop.importing import from_hugging_face
    from modern_llm.models.transformer import ModernDecoderLM
    from modern_llm.models.verifier import VerifierModel
    from modern_llm.models.verifier_config import VerifierConfig

_HOMES = {
    "ModernLLMConfig": "config",
    "MoEConfig": "feed_forward.mixture",
    "ModernDecoderLM": "transformer",
    "VerifierConfig": "verifier_config",
    "VerifierModel": "verifier",
    "generate": "decoding.generation",
    "generate_text": "decoding.generation",
    "stream_tokens": "decoding.generation",
    "from_hugging_face": "interop.importing",
    "to_hugging_face": "interop.exporting",
}
__all__ = [
    "MoEConfig",
    "ModernDecoderLM",
    "ModernLLMConfig",
    "VerifierConfig",
    "VerifierModel",
    "from_hugging_face",
    "generate",
    "generate_text",
    "stream_tokens",
    "to_hugging_face",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
