"""How a model, its gradients and its optimiser's state lie on the processes. The choices of `hardware.sharding`."""
