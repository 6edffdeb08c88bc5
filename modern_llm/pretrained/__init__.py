"""Hugging Face models and LoRA, made to look like ours."""
