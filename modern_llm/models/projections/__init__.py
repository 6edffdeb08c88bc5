"""Parts that change queries, keys and values as they were projected. The choices of `model/projections`."""
