"""Supervised finetuning on instructions and conversations, with the loss on the assistant's turns alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.instructions.settings import InstructionData
from modern_llm.data.rows import look_at
from modern_llm.defaults import Defaults
from modern_llm.experiment.samples import Samples
from modern_llm.experiment.training import (
    Parts,
    Selection,
    Session,
    TrainingTask,
    require_metric,
    require_positive,
    tell_skipped,
)
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel

if TYPE_CHECKING:
    from modern_llm.data.instructions.read import Instructions
    from modern_llm.data.rows import Part
    from modern_llm.experiment.record import Measured
    from modern_llm.pretrained.loading import LoadedModel

_HEADLINE = ("evaluation_loss", "evaluation_perplexity")


_DEFAULTS = Defaults("task/sft")


@dataclass(frozen=True, kw_only=True)
class SFT(TrainingTask):
    """Train on conversations, choose the best checkpoint on held-out ones, report the loss on others.

    Args:
        model, trainer, hardware, logger, paths, seed, suggested_steps, objective_metric: as in `TrainingTask`.
        data: the conversations.
        packing: put several conversations into a row, each invisible to the others; `trainer.batch_size` then counts
            rows. False: one conversation a row.
        max_tokens: longest conversation, and length of a packed row; longer ones are left out, and counted.
        max_train_examples, max_evaluation_examples: samples drawn by the seed; null: all.
        samples: prompts that the trained model answers.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun
    data: InstructionData
    packing: bool = _DEFAULTS("packing")
    max_tokens: int = _DEFAULTS("max_tokens")
    max_train_examples: int | None = _DEFAULTS("max_train_examples")
    max_evaluation_examples: int | None = _DEFAULTS("max_evaluation_examples")
    samples: Samples
    suggested_steps: int = _DEFAULTS("suggested_steps")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "max_train_examples", "max_evaluation_examples")
        require(self.max_tokens >= 8, "task.max_tokens", self.max_tokens, "must be at least 8", "Raise it")
        require_metric(self, (*_HEADLINE, "train_loss"), ("loss",))

    def read(self, at: Session) -> None:
        look_at(self.data, self.paths.mirror)

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.experiment.loading import load_chat_model

        return load_chat_model(self.model, at.runtime, self.paths.mirror, train=True)

    def parts(self, at: Session) -> Parts:
        from modern_llm.data.batches import LengthBatches, PackedBatches
        from modern_llm.data.instructions.read import ConversationBatch
        from modern_llm.experiment.loading import room_in
        from modern_llm.objectives.language_modeling import LanguageModeling

        train, held_out = self._part(at, "train", self.max_train_examples), self._part(at, "selection")
        at.data = train
        collate, batch_size = ConversationBatch(at.loaded.tokenizer.eos_id), self.trainer.batch_size
        stream: LengthBatches
        if self.packing:
            row = room_in(at.loaded, self.max_tokens)
            stream = PackedBatches(train.items, batch_size, row, self.seed, collate, train.fingerprint)
        else:
            stream = LengthBatches(train.items, batch_size, self.seed, collate.singly, train.fingerprint)
        objective = LanguageModeling()
        return Parts(stream, objective, Selection(at, objective, held_out.items, collate.singly))

    def measure(self, at: Session) -> Measured:
        from modern_llm.data.instructions.read import ConversationBatch
        from modern_llm.evaluation.answering import mean_loss
        from modern_llm.experiment.record import Measured, evaluated_on
        from modern_llm.objectives.language_modeling import LanguageModeling

        train, evaluation = at.data, self._part(at, "evaluation", self.max_evaluation_examples)
        model: Any = at.loaded.model
        collate = ConversationBatch(at.loaded.tokenizer.eos_id).singly
        loss = mean_loss(model, LanguageModeling(), evaluation.items, collate, at.rows, at.runtime.device)["loss"]
        return Measured(
            {"evaluation_loss": loss, "evaluation_perplexity": math.exp(min(loss, 700.0))},
            _HEADLINE,
            {"": evaluated_on(evaluation.content, len(evaluation.items), at.loaded.tokenizer.fingerprint)},
            {
                "data": self.data.source.name,
                "train_examples": len(train.items),
                "train_fingerprint": train.fingerprint,
                "left_out_of_training": train.skipped,
                "evaluation_split": evaluation.split,
                "left_out_of_evaluation": evaluation.skipped,
            },
            {"samples": self.samples.answered(at.loaded, at.runtime, self.seed)},
        )

    def _part(self, at: Session, part: Part, limit: int | None = None) -> Instructions:
        from modern_llm.data.chat import ChatWriter
        from modern_llm.data.instructions.read import read_instructions
        from modern_llm.experiment.loading import room_in

        writer, room = ChatWriter(at.loaded.tokenizer), room_in(at.loaded, self.max_tokens)
        found = read_instructions(self.data, writer, part, room, self.paths.mirror, limit, self.seed)
        tell_skipped(part, len(found.items), found.skipped)
        return found
