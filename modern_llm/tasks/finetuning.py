"""Finetuning a pretrained model, or a decoder of an earlier run, on inputs and answers; and measuring it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.labelled import SupervisedData
from modern_llm.experiment.contract import Paths, RunFolder, require_pretrained, say
from modern_llm.experiment.examples import FormName, chosen_metric, require_form
from modern_llm.experiment.training import require_positive
from modern_llm.models.config import ModernLLMConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware, TrainerSettings

if TYPE_CHECKING:
    from pathlib import Path

    from modern_llm.data.forms import Form
    from modern_llm.objectives.base import Objective
    from modern_llm.pretrained.loading import LoadedModel
    from modern_llm.training.runtime import Runtime
    from modern_llm.training.trainer import TrainResult

_MONITORS = ("validation_loss",)


@dataclass(frozen=True)
class Finetuning:
    """Train on a data set of inputs and answers, choose the best checkpoint on held-out training examples, report on
    another split.

    Args:
        model, trainer, hardware, logger, paths, seed: of the same names in the configuration.
        data: the examples, and how they become text.
        form: `classification` (a head on the last real token), `label_words` (the label is written, and the most
            likely word counts), `answer` (free text is written); `auto`: classification for labelled data and
            decoders, label_words for labelled data and T5, else answer.
        train: false: measure the model as it is.
        max_tokens: longest text, answer included; longer inputs are shortened, and counted.
        max_train_examples, max_evaluation_examples: samples drawn by the seed; null: all.
        suggested_steps: what `trainer.max_steps` is unless set.
        objective_metric: final metric that a sweep optimises; empty: the first of the data's.

    Raises:
        ValueError: an impossible combination.
    """

    model: PretrainedModel | ModelFromRun | ModernLLMConfig
    trainer: TrainerSettings
    hardware: Hardware
    data: SupervisedData
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    form: FormName = "auto"
    train: bool = True
    max_tokens: int = 512
    max_train_examples: int | None = None
    max_evaluation_examples: int | None = None
    suggested_steps: int = 1000
    objective_metric: str = ""

    def __post_init__(self) -> None:
        require_pretrained(self.model)
        require_form(self.form, self.data)
        object.__setattr__(self, "objective_metric", chosen_metric(self.objective_metric, self.data))
        require_positive(self, "max_tokens", "max_train_examples", "max_evaluation_examples", "suggested_steps")
        require(self.trainer.monitor in _MONITORS, "trainer.monitor", self.trainer.monitor,
                "is not measured during training", f"Choose among {', '.join(_MONITORS)}")  # fmt: skip

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train from where the folder stands, then measure and report. Returns the final metrics."""
        import torch

        from modern_llm.experiment.examples import answer_examples, finish, prepare_model

        torch.manual_seed(self.seed)
        runtime, loaded, form = prepare_model(self, train=self.train)
        metrics: dict[str, float] = {}
        facts: dict[str, Any] = {"form": type(form).__name__, "base_fingerprint": loaded.fingerprint}
        checkpoint: Path | None = None
        if self.train:
            result, measured = self._fit(folder, loaded, form, runtime)
            metrics |= measured
            checkpoint = result.best_checkpoint or result.last_checkpoint
        loaded.model.eval()
        examples = self.data.examples("evaluation", self.paths.mirror, self.max_evaluation_examples, self.seed)
        shortened = form.truncated
        with runtime.autocast():
            scored = answer_examples(loaded, form, examples.rows, self.hardware.eval_rows, runtime.device, self.seed)
        facts |= {
            "evaluation_split": examples.split,
            "evaluation_examples": len(examples.rows),
            "shortened_inputs": form.truncated - shortened,
            "data_fingerprint": examples.fingerprint,
        }
        return finish(self, folder, runtime, loaded, scored, metrics, facts, checkpoint)

    def _fit(
        self, folder: RunFolder, loaded: LoadedModel, form: Form, runtime: Runtime
    ) -> tuple[TrainResult, dict[str, float]]:
        from modern_llm.data.batches import LengthBatches
        from modern_llm.experiment.training import SelectionLoss, fit

        mirror = self.paths.mirror
        train = self.data.examples("train", mirror, self.max_train_examples, self.seed)
        selection = self.data.examples("selection", mirror)
        items, held_out = form.encode(train.rows), form.encode(selection.rows)
        left_out = train.empty + len(train.rows) - len(items)
        say(
            f"train: {len(items):,} examples ({left_out} left out, {form.truncated} shortened), "
            f"{len(held_out)} more are held out to choose the best checkpoint"
        )

        data = LengthBatches(
            items,
            self.trainer.batch_size,
            self.seed,
            form.collate,
            f"{train.fingerprint} {loaded.tokenizer.fingerprint}",
        )
        objective = self._objective(loaded)
        evaluator = SelectionLoss(objective, held_out, form.collate, self.hardware.eval_rows, runtime)
        result, measured = fit(self, folder, runtime, loaded, data, objective, evaluator)
        return result, measured | {"epochs": data.epochs, "padding_share": data.padding_share}

    def _objective(self, loaded: LoadedModel) -> Objective:
        from modern_llm.objectives.classification import Classification
        from modern_llm.objectives.language_modeling import LanguageModeling
        from modern_llm.objectives.seq2seq import Seq2Seq

        if loaded.labels:
            return Classification()
        return Seq2Seq() if loaded.is_seq2seq else LanguageModeling()
