"""Parts that change the values which attention reads. The choices of `model/values`."""
