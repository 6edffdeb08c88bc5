"""Steps that the device itself leaves out where the loss or the gradient is not finite.

The convention is torch's own, of loss scaling: an optimiser that finds a scalar tensor `found_inf` on itself changes
nothing where that is 1. Torch's fused optimisers and `MuonWithAdamW` keep to it.
"""

from __future__ import annotations

from torch import Tensor
from torch.optim import Optimizer


def judges_itself(optimizer: Optimizer) -> bool:
    """Whether an optimiser heeds `found_inf`."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def step_if_finite(optimizer: Optimizer, loss: Tensor, norm: Tensor) -> None:
    """A step that changes nothing where the loss or the norm of the gradient, both scalars, is not finite. Nothing is
    read on the host."""
    setattr(optimizer, "found_inf", 1 - (loss.isfinite() & norm.isfinite()).float())  # noqa: B010 - torch's own name
    try:
        optimizer.step()
    finally:
        delattr(optimizer, "found_inf")
