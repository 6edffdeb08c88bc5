"""Running text: where it is from, tokenizers, the token cache, packing."""
