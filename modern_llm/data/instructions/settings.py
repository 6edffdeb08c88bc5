"""Which instructions are learned, and how their rows are read. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modern_llm.checks import require
from modern_llm.data.rows import RowSource
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/data/instructions")


@dataclass(frozen=True)
class InstructionData:
    """Instructions with answers.

    Args:
        source: where the rows are from.
        form: `alpaca`: instruction, optional input and output, each in a column (Taori et al. 2023); `chat`: a column
            with the turns, each with `role` and `content`, or `from` and `value`.
        instruction_column, input_column, output_column: of the form alpaca; the input column may be missing.
        messages_column: of the form chat.
        system: what a system turn in front of every conversation says; empty: none.
    """

    source: RowSource
    form: Literal["alpaca", "chat"] = _DEFAULTS("form")
    instruction_column: str = _DEFAULTS("instruction_column")
    input_column: str = _DEFAULTS("input_column")
    output_column: str = _DEFAULTS("output_column")
    messages_column: str = _DEFAULTS("messages_column")
    system: str = _DEFAULTS("system")

    def __post_init__(self) -> None:
        for key in self.columns:
            require(bool(key.strip()), "task.data", key, "a column has no name", "Name it")

    @property
    def columns(self) -> list[str]:
        """Columns that every row must have."""
        return [self.messages_column] if self.form == "chat" else [self.instruction_column, self.output_column]
