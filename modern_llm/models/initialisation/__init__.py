"""How the weights begin. The choices of `model/init`."""
