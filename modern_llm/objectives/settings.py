"""What a language model learns from texts: the choices of `task/objective`. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modern_llm.objectives.base import Objective


class TextObjective(ABC):
    """Settings of an objective over texts and answers of a decoder."""

    @abstractmethod
    def build(self) -> Objective:
        """The objective; its batches are those of `LanguageModeling`."""


@dataclass(frozen=True)
class NextToken(TextObjective):
    """The cross-entropy of every label."""

    def build(self) -> Objective:
        from modern_llm.objectives.language_modeling import LanguageModeling

        return LanguageModeling()
