"""Prompts with a chosen and a rejected answer."""
