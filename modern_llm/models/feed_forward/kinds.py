"""Kinds of feed-forward layer: what happens between its two matrices. A new kind is a class here and its file in
`conf/model/ffn/`; torch is imported where it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FeedForwardKind(ABC):
    """An elementwise function, with a gate or without.

    Attributes:
        gated: the first matrix gives two parts, and the layer is act(gate) * up; else act(up).
        hugging_face: the function's name as `hidden_act` of transformers' gated layers; None: they have none such.
    """

    gated: ClassVar[bool]
    hugging_face: ClassVar[str | None]

    @property
    def parts(self) -> int:
        """How often the hidden width stands in the rows of the first matrix."""
        return 2 if self.gated else 1

    def default_size(self, d_model: int) -> int:
        """Hidden width that gives every kind the parameters of two matrices of width 4 d_model (Shazeer 2020, arXiv
        2002.05202, section 2); with a gate rounded up to a multiple of 64."""
        return -(-d_model * 8 // (3 * 64)) * 64 if self.gated else 4 * d_model

    @abstractmethod
    def act(self, x: Tensor) -> Tensor:
        """The function, of any shape, as a new tensor."""

    @abstractmethod
    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        """grad times the function's slope at x."""


@dataclass(frozen=True)
class SwiGLU(FeedForwardKind):
    """silu(gate) * up, silu(x) = x sigmoid(x) (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    gated = True
    hugging_face = "silu"

    def act(self, x: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.silu(x)

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        import torch

        return torch.ops.aten.silu_backward(grad, x)


@dataclass(frozen=True)
class GeGLU(FeedForwardKind):
    """gelu(gate) * up (Shazeer 2020, arXiv 2002.05202, eq. 6), gelu in its tanh form (Hendrycks & Gimpel 2016, arXiv
    1606.08415, section 2), as in Gemma."""

    gated = True
    hugging_face = "gelu_pytorch_tanh"

    def act(self, x: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.gelu(x, approximate="tanh")

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        import torch

        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


@dataclass(frozen=True)
class ReLU2(FeedForwardKind):
    """max(x, 0)^2, without a gate (So et al. 2021, arXiv 2109.08668)."""

    gated = False
    hugging_face = None

    def act(self, x: Tensor) -> Tensor:
        return x.relu().square()

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        return grad * x.relu().mul_(2)
