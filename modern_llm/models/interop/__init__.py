"""The same model in our decoder and in transformers."""
