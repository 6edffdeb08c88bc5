"""`config.json` beside a decoder of our own, from which transformers' Auto classes make it (`modern_llm.auto`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from modern_llm.config.instantiate import as_node
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.loaded import LoadedModel, OwnDecoder
from modern_llm.pretrained.settings import ModelFromRun

MODEL_TYPE = "modern_llm"


def auto_config(loaded: LoadedModel) -> dict[str, Any] | None:
    """What `config.json` says of a whole decoder of our own; None for all other models."""
    if not isinstance(loaded, OwnDecoder) or not loaded.described_by_itself or loaded.labels:
        return None
    config = loaded.base.config
    if not isinstance(config, ModernLLMConfig):
        return None
    return {
        "model_type": MODEL_TYPE,
        "architectures": ["ModernLLMForCausalLM"],
        "settings": written(config),
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "max_position_embeddings": config.max_seq_len,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": loaded.tokenizer.bos_id,
        "eos_token_id": loaded.tokenizer.eos_id,
        "pad_token_id": loaded.tokenizer.eos_id,
        "dtype": "float32",
    }


def written(config: ModernLLMConfig) -> str:
    """Settings as one JSON text: transformers sorts the keys of its own, and parts have an order."""
    return json.dumps(as_node(config))


def checkpoint_in(path: Any) -> Path | None:
    """The checkpoint that a run's or a checkpoint's folder means; None for any other folder or name."""
    folder = Path(str(path)).expanduser()
    if not (folder / "checkpoints").is_dir() and not (folder / "manifest.json").is_file():
        return None
    return ModelFromRun(path=str(folder)).checkpoint()
