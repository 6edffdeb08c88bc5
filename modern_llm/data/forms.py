"""How an example meets a model: a text to classify, a prompt to continue, a source to answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from modern_llm.data.batches import ClassificationBatch, Collate, CompletionBatch, Encoded, Seq2SeqBatch
from modern_llm.data.labelled import Example, LabelledData
from modern_llm.data.text.tokenizers import Tokenizer


@dataclass
class Form(ABC):
    """Ids of examples.

    Args:
        data: the templates.
        tokenizer: of the model.
        max_tokens: longest text, answer included.
        start_ids: what every text begins with.

    Attributes:
        truncated: examples so far whose input had to be shortened.
        skipped: examples so far whose answer alone is too long.
    """

    data: LabelledData
    tokenizer: Tokenizer
    max_tokens: int
    start_ids: list[int] = field(default_factory=list)
    truncated: int = 0
    skipped: int = 0

    @property
    @abstractmethod
    def collate(self) -> Collate:
        """Makes batches for training."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Ids for training and for the loss; examples whose answer does not fit are skipped and counted."""
        inputs = self.tokenizer.encode_batch([self.input_of(e) for e in examples])
        targets = self.tokenizer.encode_batch([self.written(e.target) for e in examples])
        items = []
        for example, ids, answer in zip(examples, inputs, targets, strict=True):
            target = self._target(answer)
            room = self.max_tokens - len(target)
            if room < len(self.start_ids) + 1:
                self.skipped += 1
                continue
            label = -1 if example.label is None else example.label
            items.append(Encoded(example.index, self.fit(ids, room), target, label))
        if not items:
            raise ValueError(
                f"task.max_tokens={self.max_tokens}: no answer fits into so few tokens. Raise it, or choose a model "
                "with a longer context."
            )
        return items

    def prompts(self, examples: Sequence[Example], reserve: int) -> list[list[int]]:
        """Ids of what the model reads when it has to answer; `reserve` tokens are left for the answer.

        Raises:
            ValueError: nothing is left for the prompt.
        """
        room = self.max_tokens - reserve
        if room < len(self.start_ids) + 1:
            raise ValueError(
                f"task.max_tokens={self.max_tokens}: leaves no room for a prompt beside an answer of {reserve} tokens. "
                "Raise it, lower task.data.max_new_tokens, or choose a model with a longer context."
            )
        return [self.fit(ids, room) for ids in self.tokenizer.encode_batch([self.input_of(e) for e in examples])]

    def answers(self, words: Sequence[str]) -> list[list[int]]:
        """Ids of given answers, without the end of text."""
        return self.tokenizer.encode_batch([self.written(word) for word in words])

    def fit(self, ids: list[int], room: int) -> list[int]:
        """Start and ids, shortened to `room`."""
        if len(self.start_ids) + len(ids) > room:
            self.truncated += 1
        return self._shorten(ids, room)

    def input_of(self, example: Example) -> str:
        """The text that is read."""
        return self.data.prompt_of(example)

    def written(self, answer: str) -> str:
        """The text that is written."""
        return f" {answer}"

    def _target(self, ids: list[int]) -> list[int]:
        return [*ids, self.tokenizer.eos_id]  # learned, so that the model stops by itself

    def _shorten(self, ids: list[int], room: int) -> list[int]:
        # The end of a prompt asks for the answer, so the beginning goes.
        return [*self.start_ids, *ids[-(room - len(self.start_ids)) :]]


class CompletionForm(Form):
    """Prompt and answer are one text for a decoder."""

    @property
    def collate(self) -> Collate:
        return CompletionBatch(self.tokenizer.eos_id)


class ClassificationForm(Form):
    """A text with a label, for a classification head."""

    @property
    def collate(self) -> Collate:
        return ClassificationBatch(self.tokenizer.eos_id)

    def input_of(self, example: Example) -> str:
        return self.data.text_of(example)

    def _target(self, ids: list[int]) -> list[int]:
        return []

    def _shorten(self, ids: list[int], room: int) -> list[int]:
        return [*self.start_ids, *ids][:room]


@dataclass
class Seq2SeqForm(Form):
    """A source for the encoder, an answer for the decoder.

    Args:
        start_id: what the decoder starts with.
    """

    start_id: int = 0

    @property
    def collate(self) -> Collate:
        return Seq2SeqBatch(self.tokenizer.eos_id, self.start_id)

    def input_of(self, example: Example) -> str:
        return self.data.encoder_text_of(example)

    def written(self, answer: str) -> str:
        return answer

    def _shorten(self, ids: list[int], room: int) -> list[int]:
        return [*ids[: room - 1], self.tokenizer.eos_id]  # T5's sources end like its answers
