"""A decoder trained from scratch as the base of alignment."""

from __future__ import annotations

from pathlib import Path

import torch

from modern_llm.config.instantiate import describe
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM
from modern_llm.training.checkpoint import Checkpoints, model_tensors


def trained_from_scratch(folder: Path, tokenizer: Tokenizer, seq_len: int = 160, always: int | None = None) -> Path:
    """The folder of a run with one checkpoint of a small decoder, with the weights that it starts with; with `always`,
    one that writes this id, whatever it reads."""
    torch.manual_seed(0)
    config = ModernLLMConfig(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, max_seq_len=seq_len, dropout=0.1
    )

    def extras(checkpoint: Path) -> None:
        checkpoint.joinpath("config.yaml").write_text(describe({"model": config}))
        tokenizer.save(checkpoint / "tokenizer")

    model = ModernDecoderLM(config)
    if always is not None:
        with torch.no_grad():  # every token looks alike, and this one more so
            model.embedding.weight[:] = 1.0
            model.embedding.weight[always] = 2.0
    folder.mkdir(parents=True)
    Checkpoints(folder / "checkpoints", 1).save(1, model_tensors(model), {"x": torch.zeros(1)}, extras)
    return folder
