"""Numbers that the host reads from the device."""

from __future__ import annotations

import torch
from torch import Tensor


class Reading:
    """Values (n,) on their way to the host, which may launch more work before it waits for them."""

    def __init__(self, values: Tensor) -> None:
        self.values, self.arrived = values.to("cpu", non_blocking=True), None
        if values.is_cuda:
            self.arrived = torch.cuda.Event()
            self.arrived.record()

    def numbers(self) -> list[float]:
        """The values, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()
