"""Kinds of feed-forward layer: what happens between its two matrices. A new kind is a class here and its file in
`conf/model/ffn/`; torch is imported where it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from modern_llm.checks import require
from modern_llm.defaults import Defaults

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class FeedForwardKind(ABC):
    """An elementwise function, with a gate or without.

    Attributes:
        gated: the first matrix gives two parts, and the layer is act(gate) * factor(up); else act(up).
    """

    gated: ClassVar[bool]

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

    def factor(self, up: Tensor) -> Tensor:
        """What a gate is multiplied with; the part itself where a kind does not say otherwise."""
        return up

    def factor_backward(self, grad: Tensor, up: Tensor) -> Tensor:
        """grad times the slope of `factor` at up."""
        return grad


@dataclass(frozen=True)
class SwiGLU(FeedForwardKind):
    """silu(gate) * up, silu(x) = x sigmoid(x) (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    gated = True

    def act(self, x: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.silu(x)

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        import torch

        return torch.ops.aten.silu_backward(grad, x)


@dataclass(frozen=True)
class _TanhGELU(FeedForwardKind):
    """gelu in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2)."""

    def act(self, x: Tensor) -> Tensor:
        from torch.nn import functional as F

        return F.gelu(x, approximate="tanh")

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        import torch

        return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


@dataclass(frozen=True)
class GeGLU(_TanhGELU):
    """gelu(gate) * up (Shazeer 2020, arXiv 2002.05202, eq. 6), as in Gemma."""

    gated = True


@dataclass(frozen=True)
class GELU(_TanhGELU):
    """gelu(up), without a gate, as in GPT-2."""

    gated = False


_CLAMPED = Defaults("model/ffn/clamped_swiglu")


@dataclass(frozen=True)
class ClampedSwiGLU(FeedForwardKind):
    """g sigmoid(slope g) * (u + 1), g = min(gate, limit), u = up within ±limit: no activation grows without bound, and
    a part that is 0 lets the gate through (gpt-oss, arXiv 2508.10925; its published code).

    Args:
        slope: of the sigmoid.
        limit: on both parts.
    """

    gated = True

    slope: float = _CLAMPED("slope")
    limit: float = _CLAMPED("limit")

    def __post_init__(self) -> None:
        for key, usual in (("slope", "1.702"), ("limit", "7.0")):
            require(getattr(self, key) > 0, f"model.ffn.{key}", getattr(self, key), "must be above 0", f"Use {usual}")

    def act(self, x: Tensor) -> Tensor:
        x = x.clamp(max=self.limit)
        return x * (x * self.slope).sigmoid()

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        inside, x = x <= self.limit, x.clamp(max=self.limit)
        share = (x * self.slope).sigmoid()
        return grad * inside * share * (1 + self.slope * x * (1 - share))

    def factor(self, up: Tensor) -> Tensor:
        return up.clamp(-self.limit, self.limit) + 1

    def factor_backward(self, grad: Tensor, up: Tensor) -> Tensor:
        return grad * (up.abs() <= self.limit)


@dataclass(frozen=True)
class ReLU2(FeedForwardKind):
    """max(x, 0)^2, without a gate (So et al. 2021, arXiv 2109.08668)."""

    gated = False

    def act(self, x: Tensor) -> Tensor:
        hidden = x.relu()
        return hidden * hidden  # square() would be computed in fp32 under autocast on a GPU

    def act_backward(self, grad: Tensor, x: Tensor) -> Tensor:
        return grad * x.relu().mul_(2)
