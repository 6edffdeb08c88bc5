"""What transformers' Auto classes find for a configuration of this project."""

from __future__ import annotations

from functools import cache


@cache
def register_models() -> None:
    """Once a configuration is there, transformers is loaded, and its classes can be derived from."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from modern_llm.auto.configuration import ModernLLMAutoConfig
    from modern_llm.auto.modeling import ModernLLMForCausalLM
    from modern_llm.auto.tokenization import ModernLLMTokenizer

    AutoModelForCausalLM.register(ModernLLMAutoConfig, ModernLLMForCausalLM, exist_ok=True)
    AutoTokenizer.register(ModernLLMAutoConfig, fast_tokenizer_class=ModernLLMTokenizer, exist_ok=True)
