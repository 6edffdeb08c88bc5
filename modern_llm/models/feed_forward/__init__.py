"""Feed-forward layers: dense and of experts."""
