"""Supervised finetuning on instructions and conversations, with the loss on the assistant's turns alone."""

from __future__ import annotations

from dataclasses import dataclass, field

from modern_llm.checks import require
from modern_llm.data.instructions.settings import InstructionData
from modern_llm.experiment.contract import Paths, RunFolder, require_pretrained
from modern_llm.experiment.training import require_metric, require_positive
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.tasks.pretraining import Samples
from modern_llm.training.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware, TrainerSettings

_METRICS = ("evaluation_loss", "evaluation_perplexity", "train_loss")


@dataclass(frozen=True)
class SFT:
    """Train on conversations, choose the best checkpoint on held-out ones, report the loss on others.

    Args:
        model, trainer, hardware, logger, paths, seed: of the same names in the configuration.
        data: the conversations.
        packing: put several conversations into a row, each invisible to the others; `trainer.batch_size` then counts
            rows. False: one conversation a row.
        max_tokens: longest conversation, and length of a packed row; longer ones are left out, and counted.
        max_train_examples, max_evaluation_examples: samples drawn by the seed; null: all.
        samples: prompts that the trained model answers.
        suggested_steps: what `trainer.max_steps` is unless set.
        objective_metric: final metric that a sweep optimises.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun | ModernLLMConfig
    trainer: TrainerSettings
    hardware: Hardware
    data: InstructionData
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    packing: bool = True
    max_tokens: int = 1024
    max_train_examples: int | None = None
    max_evaluation_examples: int | None = None
    samples: Samples = field(default_factory=lambda: Samples([]))
    suggested_steps: int = 500
    objective_metric: str = "evaluation_loss"

    def __post_init__(self) -> None:
        require_pretrained(self.model)
        require_positive(self, "max_train_examples", "max_evaluation_examples", "suggested_steps")
        require(self.max_tokens >= 8, "task.max_tokens", self.max_tokens, "must be at least 8", "Raise it")
        require_metric(self, _METRICS, ("validation_loss",))

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train from where the folder stands, then measure and report. Returns the final metrics."""
        import math

        import torch

        from modern_llm.data.batches import LengthBatches, PackedBatches
        from modern_llm.data.chat import ChatWriter
        from modern_llm.data.instructions.read import ConversationBatch, read_instructions
        from modern_llm.evaluation.answering import mean_loss
        from modern_llm.experiment.training import (
            SelectionLoss,
            chat_samples,
            fit,
            prepare_chat_model,
            report,
            room_in,
            tell_skipped,
        )
        from modern_llm.objectives.language_modeling import LanguageModeling

        torch.manual_seed(self.seed)
        runtime, loaded = prepare_chat_model(self, train=True)
        room, writer, mirror = room_in(loaded, self.max_tokens), ChatWriter(loaded.tokenizer), self.paths.mirror
        train = read_instructions(self.data, writer, "train", room, mirror, self.max_train_examples, self.seed)
        held_out = read_instructions(self.data, writer, "selection", room, mirror)
        tell_skipped("train", len(train.items), train.skipped)
        collate = ConversationBatch(loaded.tokenizer.eos_id)
        batch_size = self.trainer.batch_size
        stream: LengthBatches
        if self.packing:
            stream = PackedBatches(train.items, batch_size, room, self.seed, collate, train.fingerprint)
        else:
            stream = LengthBatches(train.items, batch_size, self.seed, collate.singly, train.fingerprint)
        objective, rows = LanguageModeling(), self.hardware.eval_rows
        evaluator = SelectionLoss(objective, held_out.items, collate.singly, rows, runtime)
        result, metrics = fit(self, folder, runtime, loaded, stream, objective, evaluator)
        evaluation = read_instructions(
            self.data, writer, "evaluation", room, mirror, self.max_evaluation_examples, self.seed
        )
        with runtime.autocast(), torch.no_grad():
            loss = mean_loss(loaded.model, objective, evaluation.items, collate.singly, rows, runtime.device)["loss"]
        metrics |= {
            "evaluation_loss": loss,
            "evaluation_perplexity": math.exp(min(loss, 700.0)),
            "epochs": stream.epochs,
            "padding_share": stream.padding_share,
        }
        protocol = {
            "data": self.data.source.name,
            "train_examples": len(train.items),
            "left_out_of_training": train.skipped,
            "evaluation_split": evaluation.split,
            "evaluation_examples": len(evaluation.items),
            "left_out_of_evaluation": evaluation.skipped,
            "data_fingerprint": train.fingerprint,
            "base_fingerprint": loaded.fingerprint,
        }
        samples = chat_samples(loaded, runtime, self.samples, self.seed)
        report(self, folder, runtime, metrics, _METRICS[:2], protocol, result.best_checkpoint or result.last_checkpoint,
               samples=samples)  # fmt: skip
        return metrics
