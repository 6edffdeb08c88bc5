"""Small models to load by kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from made_models import NAMES, byte_tokenizer, make_mirror

from modern_llm.models.config import GQAConfig, ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.pretrained.loading import LoadedModel, load_hugging_face, own_decoder
from modern_llm.pretrained.settings import FullFinetuning, LoRA, PretrainedModel


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mirror."""
    return make_mirror(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="session")
def load(hub: Path) -> Callable[..., LoadedModel]:
    """Loads a small model by kind: gpt2, llama, t5, flan, or own."""

    def load_kind(kind: str, labels: list[str] | None = None, lora: LoRA | None = None) -> LoadedModel:
        torch.manual_seed(3)
        if kind == "own":
            config = ModernLLMConfig(
                vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, gqa=GQAConfig(2)
            )
            loaded = own_decoder(ModernDecoderLM(config), byte_tokenizer(), "own", labels)
            for parameter in loaded.model.parameters():
                if parameter.dim() > 1:
                    parameter.data.mul_(3)
        else:
            settings = PretrainedModel(NAMES[kind], lora or FullFinetuning())
            loaded = load_hugging_face(settings, str(hub), labels)
        if lora is not None:
            loaded = loaded.with_lora(lora)
        loaded.model.eval()
        return loaded

    return load_kind
