"""The output head: from hidden states to the logits of every token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from modern_llm.models.linear import linear


class OutputHead(NamedTuple):
    """One matrix and, perhaps, a soft cap on what it gives: z = c tanh(W h / c) (Gemma 2, arXiv 2408.00118, section 2).

    Attributes:
        weight: (V, d).
        softcap: c, above 0; None: no cap.
    """

    weight: Tensor
    softcap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., V) in fp32 at least, of hidden states (..., d)."""
        products = linear(hidden, self.weight.to(hidden.dtype))
        products = products.to(torch.promote_types(products.dtype, torch.float32))
        return products if self.softcap is None else products.div(self.softcap).tanh().mul(self.softcap)
