"""Kinds of norm in front of and behind branches, and in front of the head. A new kind is a class here and its file in
`conf/model/norm/`; torch is imported where it is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from modern_llm.models.norm import Norm


@dataclass(frozen=True)
class NormKind(ABC):
    """A norm over the width of the residual stream.

    Attributes:
        vectors: learned vectors of that width.
    """

    vectors: ClassVar[int]

    @abstractmethod
    def build(self, size: int, eps: float) -> Norm:
        """The module for `size` channels; eps is added under the root."""


@dataclass(frozen=True)
class RMSNormKind(NormKind):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    vectors = 1

    def build(self, size: int, eps: float) -> Norm:
        from modern_llm.models.norm import RMSNorm

        return RMSNorm(size, eps)


@dataclass(frozen=True)
class LayerNormKind(NormKind):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016, arXiv 1607.06450, eq. 4)."""

    vectors = 2

    def build(self, size: int, eps: float) -> Norm:
        from modern_llm.models.norm import LayerNorm

        return LayerNorm(size, eps)
