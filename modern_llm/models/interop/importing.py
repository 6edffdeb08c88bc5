"""From a causal language model of transformers, or a folder, to a decoder of ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modern_llm.hub import find_model
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.interop.architecture import Architecture
from modern_llm.models.interop.architectures import ARCHITECTURES
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.transformer import ModernDecoderLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PLAIN_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def from_hugging_face(source: str | Path | PreTrainedModel) -> ModernDecoderLM:
    """The same model as a `ModernDecoderLM`, in the dtype of the source; logits agree.

    Args:
        source: a loaded causal model of one of `ARCHITECTURES`, a folder, or a name that is looked for in the mirror,
            the local cache and the hub.

    Raises:
        ValueError: an architecture, or a key of its configuration, that `ModernDecoderLM` cannot express, by name;
            weights that are missing, left over or quantised.
    """
    if isinstance(source, str | Path):
        from transformers import AutoModelForCausalLM

        source = AutoModelForCausalLM.from_pretrained(find_model(str(source)))
    architecture, config = _architecture(source.config), import_config(source.config)
    with torch.device("meta"):
        model = ModernDecoderLM(config)
    model.load_state_dict(_imported(source.state_dict(), model, architecture), strict=True, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    model.rotary = Rotary.of_model(config).to(source.device)
    return model.requires_grad_(True).train(source.training)


def import_config(theirs: Any) -> ModernLLMConfig:
    """`ModernLLMConfig` of a transformers configuration.

    Raises:
        ValueError: as in `from_hugging_face`.
    """
    architecture, foreign = _architecture(theirs), ForeignConfig(theirs)
    settings = architecture.settings(foreign)
    foreign.finish()
    return ModernLLMConfig(**settings)


def _architecture(theirs: Any) -> Architecture:
    if theirs.model_type not in ARCHITECTURES:
        raise ValueError(
            f"model_type={theirs.model_type!r}: not an architecture that ModernDecoderLM matches. "
            f"Supported: {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[theirs.model_type]


def _imported(weights: dict[str, Tensor], model: ModernDecoderLM, architecture: Architecture) -> dict[str, Tensor]:
    """The state of our model, in memory of its own."""
    found: dict[str, Tensor] = {}
    used: set[str] = set()
    for ours, empty in model.state_dict().items():
        names, layout = architecture.names.of(ours)
        missing = [name for name in names if name not in weights]
        if missing:
            raise ValueError(f"the source has no weight {missing[0]!r}. Is it a causal LM, and is it not quantised?")
        stored = torch.cat([weights[name] for name in names])
        if stored.dtype not in _PLAIN_TYPES:
            raise ValueError(f"{names[0]} is {stored.dtype}: the source is quantised. Load it dequantised first.")
        found[ours] = layout.load(stored, model.config).clone(memory_format=torch.contiguous_format)
        if found[ours].shape != empty.shape:
            raise ValueError(f"{names[0]}: {tuple(found[ours].shape)} where {tuple(empty.shape)} was expected.")
        used |= {*names}
    left = sorted(weights.keys() - used)
    if left:
        raise ValueError(f"the source has a weight {left[0]!r} that has no place here ({len(left)} in all).")
    return found
