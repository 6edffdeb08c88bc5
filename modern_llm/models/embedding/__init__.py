"""Parts between the embedding and the first block. The choices of `model/embedding`."""
