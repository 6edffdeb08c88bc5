"""Text to batches: sources, tokenizers, the token cache and the packed stream."""
