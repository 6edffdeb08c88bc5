"""Texts of nested brackets, and how often a model closes the right one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from modern_llm.checks import require
from modern_llm.data.text.sources import Split
from modern_llm.tasks.pretraining import Pretraining

if TYPE_CHECKING:
    from modern_llm.experiment.record import Measured
    from modern_llm.experiment.training import Session

_CLOSING = {"(": ")", "[": "]", "{": "}", "<": ">"}


@dataclass(frozen=True)
class Brackets:
    """Words of the Dyck language of four kinds of brackets, one a document.

    Args:
        texts: documents to train on; a tenth as many are for validation.
        pairs: of brackets in a document.
    """

    texts: int = 400
    pairs: int = 40

    newlines_are_words: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require(self.texts >= 10, "task.data.texts", self.texts, "must be at least 10", "Use 400")
        require(self.pairs >= 1, "task.data.pairs", self.pairs, "must be at least 1", "Use 40")

    def splits(self) -> tuple[Split, ...]:
        return ("train", "validation")

    def fingerprint(self, split: Split, mirror: str | None) -> str:
        return f"brackets {self.texts} {self.pairs} {split}"

    def documents(self, split: Split, mirror: str | None) -> Iterator[str]:
        draw = random.Random(split)
        for _ in range(self.texts if split == "train" else self.texts // 10):
            open_ones, text, left = list[str](), "", self.pairs
            while left or open_ones:
                if left and (not open_ones or draw.random() < 0.5):
                    open_ones.append(draw.choice("([{<"))
                    text, left = text + open_ones[-1], left - 1
                else:
                    text += _CLOSING[open_ones.pop()]
            yield text


@dataclass(frozen=True, kw_only=True)
class BracketTask(Pretraining):
    """Pretraining on brackets, and besides perplexity `validation_bracket_accuracy`: of all closing brackets of the
    validation texts, how many are likelier than the three others."""

    def measure(self, at: Session) -> Measured:
        import torch

        measured, ids = super().measure(at), at.loaded.tokenizer.encode
        kinds = torch.tensor([ids(closing)[0] for closing in _CLOSING.values()])
        right = total = 0
        for text in self.data.documents("validation", self.paths.mirror):
            read = torch.tensor([at.loaded.start_ids + ids(text)][0])[: at.loaded.context]
            logits = at.loaded.decoder(read[None].to(at.runtime.device)).logits[0, :-1, kinds].cpu()
            closes = torch.isin(read[1:], kinds)
            right += int((kinds[logits.argmax(-1)] == read[1:])[closes].sum())
            total += int(closes.sum())
        measured.metrics["validation_bracket_accuracy"] = right / total
        measured.headline.insert(0, "validation_bracket_accuracy")
        return measured
