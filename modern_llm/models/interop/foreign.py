"""A configuration of transformers, of which every key is read, known to change nothing, or refused."""

from __future__ import annotations

from typing import Any

# What says nothing about the function of the model: files, generation, and the form of transformers' outputs. So do ids
# of tokens, and what is private.
_IRRELEVANT = {
    "architectures",
    "attn_implementation",
    "auto_map",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initial_context_length",
    "is_llama_config",
    "label2id",
    "max_window_layers",  # layer_types has come of it
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "quantization_config",  # where it matters, the weights are no plain ones, which is seen there
    "return_dict",
    "sliding_window_pattern",  # likewise
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
}
_REQUIRED = object()


class ForeignConfig:
    """The keys of one configuration, and which of them have been read.

    Args:
        config: of transformers.
    """

    def __init__(self, config: Any) -> None:
        self.config, self.model_type = config, str(config.model_type)
        self._values: dict[str, Any] = config.to_dict()
        self._read = {"is_encoder_decoder"}
        self._refused: dict[str, str] = {}
        self.only("is_encoder_decoder", False)

    def __call__(self, key: str, otherwise: Any = _REQUIRED) -> Any:
        """The value of a key; `otherwise` where there is none.

        Raises:
            ValueError: there is none.
        """
        self._read |= {key, self.config.attribute_map.get(key, key)}
        value = getattr(self.config, key, otherwise)
        if value is _REQUIRED:
            raise ValueError(f"{self.model_type}: the configuration has no {key}, which the architecture needs.")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a key, where it is there, whose value is none of `allowed`."""
        value = self(key, None)
        if value is not None and value not in allowed:
            self.refuse(key)

    def changes_nothing(self, *keys: str) -> None:
        """Keys that this architecture does not use."""
        for key in keys:
            self(key, None)

    def refuse(self, key: str, why: str = "") -> None:
        """A key whose value the decoder cannot express."""
        self._refused[key] = f"{key}={getattr(self.config, key, None)!r}{why and f' ({why})'}"

    def finish(self) -> None:
        """
        Raises:
            ValueError: a key was refused, or has a value and has not been read; all of them by name.
        """
        for key, value in self._values.items():
            private = key.startswith("_") or key.endswith("_token_id")
            if value is not None and not private and key not in self._read | _IRRELEVANT:
                self.refuse(key, "unknown here: remove it from config.json if it changes nothing")
        if self._refused:
            told = ", ".join(self._refused.values())
            raise ValueError(f"{self.model_type}: ModernDecoderLM cannot express {told}.")
