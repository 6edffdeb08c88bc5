"""modern_llm: Hydra-configured experiments with small modern language models."""

__version__ = "0.1.0"
