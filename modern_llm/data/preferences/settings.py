"""Which preferences are learned, and how their rows are read. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modern_llm.checks import require
from modern_llm.data.rows import RowSource
from modern_llm.defaults import Defaults

_DEFAULTS = Defaults("task/data/preferences")


@dataclass(frozen=True)
class PreferenceData:
    """Pairs of answers to one prompt, of which one is preferred.

    Args:
        source: where the rows are from.
        form: `texts`: prompt, chosen and rejected answer, each a text in a column; `dialogues`: two whole dialogues
            as text, turns behind "Human:" and "Assistant:" (Bai et al. 2022, arXiv 2204.05862), split at the
            assistant's last one; `chat`: two lists of turns, each with `role` and `content`, or `from` and `value`,
            split likewise.
        prompt_column: of the form texts.
        chosen_column, rejected_column: of all forms.
        system: what a system turn in front of every conversation says; empty: none.
        folds: training pairs are dealt to so many folds by their prompt, the user's last turn: a prompt is in the same
            fold wherever it is found, so that trainings on different folds share none, of whatever data. The held-out
            parts are not dealt.
        fold: the one that is read, from 0.

    Raises:
        ValueError: a column without a name, or a fold that is none of them.
    """

    source: RowSource
    form: Literal["texts", "dialogues", "chat"] = _DEFAULTS("form")
    prompt_column: str = _DEFAULTS("prompt_column")
    chosen_column: str = _DEFAULTS("chosen_column")
    rejected_column: str = _DEFAULTS("rejected_column")
    system: str = _DEFAULTS("system")
    folds: int = _DEFAULTS("folds")
    fold: int = _DEFAULTS("fold")

    def __post_init__(self) -> None:
        for key in self.columns:
            require(bool(key.strip()), "task.data", key, "a column has no name", "Name it")
        require(self.folds >= 1, "task.data.folds", self.folds, "must be at least 1", "Use 1 for all pairs")
        require(0 <= self.fold < self.folds, "task.data.fold", self.fold,
                f"is none of the {self.folds} folds, counted from 0", "Lower it, or raise task.data.folds")  # fmt: skip

    @property
    def columns(self) -> list[str]:
        """Columns that every row must have."""
        answers = [self.chosen_column, self.rejected_column]
        return [self.prompt_column, *answers] if self.form == "texts" else answers
