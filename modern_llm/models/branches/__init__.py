"""Parts that change what attention and the feed-forward layer read. The choices of `model/branches`."""
