"""A decoder's settings as transformers knows configurations."""

from __future__ import annotations

import json
from typing import Any

from transformers.configuration_utils import PreTrainedConfig

from modern_llm.config.instantiate import build
from modern_llm.experiment.auto_config import MODEL_TYPE
from modern_llm.models.config import ModernLLMConfig


class ModernLLMAutoConfig(PreTrainedConfig):
    """`config.json` of a run, a checkpoint or a folder of `save_pretrained`.

    Args:
        settings: the decoder's, as `auto_config.written` gives them; they are checked and built as every record is.
        more: what transformers keeps in every configuration.
    """

    model_type = MODEL_TYPE

    def __init__(self, settings: str = "{}", **more: Any) -> None:
        from modern_llm.auto.registration import register_models

        self.settings = settings
        super().__init__(**more)
        register_models()  # whoever has a configuration may ask for its model

    def described(self) -> ModernLLMConfig:
        """The decoder's settings.

        Raises:
            ConfigError: they are none, or name classes that nobody has allowed.
        """
        try:
            found = build(json.loads(self.settings), "settings")
        except (TypeError, json.JSONDecodeError) as cause:
            raise ValueError(f"settings={self.settings!r}: is no JSON text. Use the folder of another run.") from cause
        if not isinstance(found, ModernLLMConfig):
            raise ValueError(f"settings={self.settings!r}: describe no decoder. Use the folder of another run.")
        return found
