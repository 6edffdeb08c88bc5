"""modern_llm: Hydra-configured experiments with small modern language models."""

from modern_llm.auto import announce

__version__ = "0.1.0"

announce()
