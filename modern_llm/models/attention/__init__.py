"""Attention: the layer, who sees whom, positions, sinks and the cache."""
