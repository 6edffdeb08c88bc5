"""Learning from preferences: DPO, cDPO, IPO, hinge and SimPO on pairs of answers, against the model as it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from modern_llm.checks import require
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.experiment.contract import Paths, RunFolder, progress_of, require_pretrained
from modern_llm.experiment.training import require_metric, require_positive
from modern_llm.models.config import ModernLLMConfig
from modern_llm.objectives.preference_losses import PreferenceLoss, SigmoidDPO
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.tasks.pretraining import Samples
from modern_llm.training.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware, TrainerSettings

if TYPE_CHECKING:
    import numpy as np

    from modern_llm.data.preferences.read import EncodedPair
    from modern_llm.data.text.tokenizers import Tokenizer
    from modern_llm.pretrained.loading import LoadedModel
    from modern_llm.training.runtime import Runtime

_MEASURED = ("preference_accuracy", "reward_margin", "log_prob_accuracy", "loss", "kl_estimate")
_WORST = 50


@dataclass(frozen=True)
class DPO:
    """Train a policy on preferences, choose the best checkpoint on held-out pairs, report on others.

    The reference is the model as it was loaded. Its log-probabilities are computed once, with adapters switched off,
    and kept in `paths.cache` by content; there is no second model in memory. The policy has no dropout, so that at the
    start it is the reference.

    Args:
        model, trainer, hardware, logger, paths, seed: of the same names in the configuration.
        data: the pairs.
        loss: what is minimised, one of `objectives/preference_losses.py`.
        max_tokens: longest prompt with an answer; longer ones are left out, and counted.
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
    data: PreferenceData
    loss: PreferenceLoss = field(default_factory=SigmoidDPO)
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    max_tokens: int = 1024
    max_train_examples: int | None = None
    max_evaluation_examples: int | None = None
    samples: Samples = field(default_factory=lambda: Samples([]))
    suggested_steps: int = 200
    objective_metric: str = "evaluation_preference_accuracy"

    def __post_init__(self) -> None:
        require_pretrained(self.model)
        require_positive(self, "max_train_examples", "max_evaluation_examples", "suggested_steps")
        require(self.max_tokens >= 8, "task.max_tokens", self.max_tokens, "must be at least 8", "Raise it")
        measured = [name for name in _MEASURED if self.loss.needs_reference or name != "kl_estimate"]
        require_metric(self, [f"evaluation_{name}" for name in measured], ("validation_loss",))

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train from where the folder stands, then measure and report. Returns the final metrics."""
        import torch

        from modern_llm.data.batches import LengthBatches
        from modern_llm.data.chat import ChatWriter
        from modern_llm.data.preferences.read import PairBatch, read_preferences
        from modern_llm.evaluation.pairs import pair_log_probs, score_pairs
        from modern_llm.experiment.training import (
            SelectionLoss,
            chat_samples,
            fit,
            prepare_chat_model,
            report,
            room_in,
            tell_skipped,
        )
        from modern_llm.objectives.preference import PreferenceOptimisation
        from modern_llm.pretrained.loading import switch_off_dropout

        torch.manual_seed(self.seed)
        runtime, loaded = prepare_chat_model(self, train=True)
        switch_off_dropout(loaded.model)
        room, writer, mirror = room_in(loaded, self.max_tokens), ChatWriter(loaded.tokenizer), self.paths.mirror
        train = read_preferences(self.data, writer, "train", room, mirror, self.max_train_examples, self.seed)
        held_out = read_preferences(self.data, writer, "selection", room, mirror)
        evaluation = read_preferences(
            self.data, writer, "evaluation", room, mirror, self.max_evaluation_examples, self.seed
        )
        tell_skipped("train", len(train.pairs), train.skipped)
        tell_skipped("evaluation", len(evaluation.pairs), evaluation.skipped)
        known = self._with_reference(loaded, runtime, [train.pairs, held_out.pairs, evaluation.pairs])
        collate, rows = PairBatch(loaded.tokenizer.eos_id), self.hardware.eval_rows
        stream = LengthBatches(known[0], self.trainer.batch_size, self.seed, collate, train.fingerprint)
        objective = PreferenceOptimisation(self.loss)
        evaluator = SelectionLoss(objective, known[1], collate, rows, runtime)
        result, metrics = fit(self, folder, runtime, loaded, stream, objective, evaluator)
        with runtime.autocast():
            log_probs = pair_log_probs(loaded.model, known[2], rows, runtime.device)  # type: ignore[arg-type]
        measured, margins = score_pairs(self.loss, known[2], log_probs, self.seed)
        metrics |= {f"evaluation_{name}": value for name, value in measured.items()}
        metrics |= {"epochs": stream.epochs, "padding_share": stream.padding_share}
        if self.loss.needs_reference:
            ahead = [(pair.reference or (0.0, 0.0)) for pair in known[2]]
            metrics["reference_log_prob_accuracy"] = sum((c > r) + 0.5 * (c == r) for c, r in ahead) / len(ahead)
        protocol = {
            "data": self.data.source.name,
            "train_pairs": len(train.pairs),
            "left_out_of_training": train.skipped,
            "evaluation_split": evaluation.split,
            "evaluation_pairs": len(evaluation.pairs),
            "left_out_of_evaluation": evaluation.skipped,
            "data_fingerprint": train.fingerprint,
            "base_fingerprint": loaded.fingerprint,
        }
        worst = worst_pairs(known[2], margins, loaded.tokenizer)
        folder.write_lines("errors.jsonl", worst)
        report(
            self,
            folder,
            runtime,
            metrics,
            [f"evaluation_{name}" for name in _MEASURED[:2]],
            protocol,
            result.best_checkpoint or result.last_checkpoint,
            samples=chat_samples(loaded, runtime, self.samples, self.seed),
            errors=worst[:_WORST],
        )
        return metrics

    def _with_reference(
        self, loaded: LoadedModel, runtime: Runtime, parts: list[list[EncodedPair]]
    ) -> list[list[EncodedPair]]:
        """The parts with the log-probabilities of the model as it was loaded, where the loss asks for them."""
        from modern_llm.evaluation.pairs import with_reference

        if not self.loss.needs_reference:
            return parts
        weights, rows = loaded.weights_hash(), self.hardware.eval_rows
        with loaded.untrained() as reference, runtime.autocast():
            return [
                with_reference(
                    pairs,
                    reference,  # type: ignore[arg-type]
                    weights,
                    runtime.precision,
                    rows,
                    runtime.device,
                    self.paths.cache_folder,
                    progress_of("log-probabilities of the reference"),
                )
                for pairs in parts
            ]


def worst_pairs(pairs: list[EncodedPair], margins: np.ndarray, tokenizer: Tokenizer) -> list[dict[str, object]]:
    """Pairs whose rejected answer has the larger reward, the largest first, as text."""
    wrong = sorted((float(margin), i) for i, margin in enumerate(margins) if margin < 0)
    return [
        {
            "index": pairs[i].index,
            "input": tokenizer.decode(pairs[i].prompt_ids),
            "reference": tokenizer.decode(pairs[i].chosen_ids),
            "prediction": tokenizer.decode(pairs[i].rejected_ids),
            "detail": f"margin {margin:.3f}",
        }
        for margin, i in wrong
    ]
