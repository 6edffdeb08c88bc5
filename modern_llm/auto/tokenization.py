"""A run's tokenizer as transformers knows tokenizers."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from modern_llm.experiment.auto_config import checkpoint_in


class ModernLLMTokenizer(PreTrainedTokenizerFast):
    """The tokenizer of a run or a checkpoint, which lies in a folder of the checkpoint."""

    @classmethod
    def from_pretrained(cls, path: Any, *arguments: Any, **more: Any) -> Any:  # type: ignore[override]
        checkpoint = checkpoint_in(path)
        folder = path if checkpoint is None else checkpoint / "tokenizer"
        return PreTrainedTokenizerFast.from_pretrained(folder, *arguments, **more)
