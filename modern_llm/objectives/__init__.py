"""Model and batch to loss: what is minimised, apart from how."""
