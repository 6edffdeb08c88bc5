"""What the tasks that train on conversations share: a decoder with a chat template, and its texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.data.rows import look_at
from modern_llm.experiment.training import Session, TrainingTask
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel

if TYPE_CHECKING:
    from modern_llm.data.chat import ChatWriter
    from modern_llm.pretrained.loaded import LoadedModel


@dataclass(frozen=True, kw_only=True)
class ConversationTask(TrainingTask):
    """A task that trains a decoder on conversations.

    Args:
        data: the rows, with `source` and `columns`.
        max_tokens: longest text; longer ones are left out, and counted.
        max_train_examples, max_evaluation_examples: samples drawn by the seed; null: all.
    """

    model: PretrainedModel | ModelFromRun
    data: Any
    max_tokens: int
    max_train_examples: int | None
    max_evaluation_examples: int | None

    def read(self, at: Session) -> None:
        look_at(self.data, self.paths.mirror)

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.loading import load_chat_model

        return load_chat_model(self.model, at.runtime, self.paths.mirror, train=True)

    @property
    def limits(self) -> dict[str, int | None]:
        """Part -> how many examples are drawn of it."""
        return {"train": self.max_train_examples, "evaluation": self.max_evaluation_examples}

    def writer(self, at: Session) -> tuple[ChatWriter, int]:
        """What writes conversations as ids for the model, and how long they may be."""
        from modern_llm.data.chat import ChatWriter
        from modern_llm.experiment.loading import room_in

        return ChatWriter(at.loaded.tokenizer), room_in(at.loaded, self.max_tokens)
