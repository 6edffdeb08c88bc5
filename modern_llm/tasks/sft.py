"""Supervised finetuning on instructions and conversations, with the loss on the assistant's turns alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modern_llm.data.instructions.settings import InstructionData
from modern_llm.data.text.replay import Replay
from modern_llm.defaults import Defaults
from modern_llm.experiment.base_text import text_of
from modern_llm.experiment.contract import say
from modern_llm.experiment.conversations import ConversationTask
from modern_llm.experiment.samples import Samples
from modern_llm.experiment.training import Parts, Selection, Session, require_metric, tell_skipped
from modern_llm.objectives.settings import NextToken, TextObjective

if TYPE_CHECKING:
    from modern_llm.data.instructions.read import Instructions
    from modern_llm.data.rows import Part
    from modern_llm.experiment.record import Measured
    from modern_llm.training.memory.plan import Step

_HEADLINE = ("evaluation_loss", "evaluation_perplexity")


_DEFAULTS = Defaults("task/sft")


@dataclass(frozen=True, kw_only=True)
class SFT(ConversationTask):
    """Train on conversations, choose the best checkpoint on held-out ones, report the loss on others.

    Args:
        data: the conversations; the others as in `ConversationTask`.
        objective: what is minimised.
        packing: put several conversations into a row of `max_tokens`, each invisible to the others;
            `trainer.batch_size` then counts rows. False: one conversation a row.
        replay: text of the kind that the model knows already, in every batch, so that it is not forgotten; null: none.
        samples: prompts that the trained model answers.

    Raises:
        ValueError: an impossible combination.
    """

    data: InstructionData
    objective: TextObjective = field(default_factory=NextToken)
    packing: bool = _DEFAULTS("packing")
    replay: Replay | None = None
    samples: Samples

    def __post_init__(self) -> None:
        super().__post_init__()
        require_metric(self, (*_HEADLINE, "train_loss"), ("loss",))

    def parts(self, at: Session) -> Parts:
        from modern_llm.data.batches import LengthBatches, PackedBatches
        from modern_llm.data.instructions.read import ConversationBatch
        from modern_llm.data.text.replay import WithReplay
        from modern_llm.data.text.tokens import tokenise

        train, held_out = self._part(at, "train"), self._part(at, "selection")
        at.data = train
        collate, batch_size = ConversationBatch(at.loaded.tokenizer.eos_id), self.trainer.batch_size
        stream: LengthBatches | WithReplay
        if self.packing:
            stream = PackedBatches(train.items, batch_size, self.writer(at)[1], self.seed, collate, train.fingerprint)
        else:
            stream = LengthBatches(train.items, batch_size, self.seed, collate.singly, train.fingerprint)
        if self.replay is not None:
            cache, mirror = self.paths.cache_folder, self.paths.mirror
            text = tokenise(self.replay.data or text_of(self.model), "train", at.loaded.tokenizer, cache, mirror, say)
            stream = WithReplay(stream, self.replay, text, self.seed)
        objective = self.objective.build()
        return Parts(stream, objective, Selection(at, objective, held_out.items, collate.singly))

    def rehearsal(self, at: Session) -> Step:
        from modern_llm.data.chat import EncodedConversation
        from modern_llm.data.instructions.read import ConversationBatch
        from modern_llm.training.memory.plan import Step

        room, replay = self.writer(at)[1], self.replay
        collate = ConversationBatch(at.loaded.tokenizer.eos_id)

        def conversation(length: int) -> EncodedConversation:
            return EncodedConversation(0, [0] * (length + 1), [True] * (length + 1))

        row = [conversation(room - room // 2), conversation(room // 2)] if self.packing else [conversation(room)]
        # Rows of text below them are as long, and `trainer.batch_size` does not count them.
        share = 1.0 if replay is None else 1 + replay.rows(self.trainer.batch_size) / self.trainer.batch_size
        return Step(at.loaded.model, self.objective.build(), lambda rows: collate([row] * round(rows * share)))

    def measure(self, at: Session) -> Measured:
        from modern_llm.data.instructions.read import ConversationBatch
        from modern_llm.evaluation.answering import mean_loss
        from modern_llm.experiment.record import Measured, evaluated_on
        from modern_llm.objectives.language_modeling import LanguageModeling

        train, evaluation = at.data, self._part(at, "evaluation")
        collate = ConversationBatch(at.loaded.tokenizer.eos_id).singly
        loss = mean_loss(at.loaded.decoder, LanguageModeling(), evaluation.items, collate, at.rows, at.runtime.device)[
            "loss"
        ]
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

    def _part(self, at: Session, part: Part) -> Instructions:
        from modern_llm.data.instructions.read import read_instructions

        writer, room = self.writer(at)
        mirror, limit = self.paths.mirror, self.limits.get(part)
        found = read_instructions(self.data, writer, part, room, mirror, limit, self.seed)
        tell_skipped(part, len(found.items), found.skipped)
        return found
