"""The output head: from hidden states to the logits of every token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modern_llm.models.attention.capped import soft_cap
from modern_llm.models.kernels import compute_dtype
from modern_llm.models.linear import linear


class OutputHead(NamedTuple):
    """One matrix and, perhaps, a factor and a soft cap on what it gives: z = c tanh(s W h / c) (Gemma 2, arXiv
    2408.00118, section 2).

    Attributes:
        weight: (V, d).
        softcap: c, above 0; None: no cap.
        scale: s.
    """

    weight: Tensor
    softcap: float | None = None
    scale: float = 1.0

    def ready(self) -> OutputHead:
        """For many passes without gradients: the weight in the precision of autocast's products, which would else cast
        a frozen one in every pass."""
        return self._replace(weight=self.weight.to(compute_dtype(self.weight)))

    def scaled(self, hidden: Tensor) -> Tensor:
        """What the matrix is multiplied with: s h, of hidden states h (..., d)."""
        return hidden if self.scale == 1 else hidden * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) in fp32 at least, of hidden states (..., d)."""
        mixed = torch.is_autocast_enabled(hidden.device.type)  # which casts both
        products = linear(self.scaled(hidden), self.weight if mixed else self.weight.to(hidden.dtype))
        products = products.to(torch.promote_types(products.dtype, torch.float32))
        return soft_cap(products, self.softcap)
