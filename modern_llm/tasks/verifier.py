"""A verifier: trained on answers that are marked right or wrong, it tells how likely another answer is right."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from modern_llm.data.rows import PARTS, content_fingerprint
from modern_llm.data.solutions.settings import SolutionData, SolutionText
from modern_llm.data.text.tokenizers import BPETokenizer, ByteTokenizer, TokenizerChoice
from modern_llm.defaults import Defaults
from modern_llm.experiment.contract import RunFolder, progress_of
from modern_llm.experiment.judges import VERIFIER_FILE
from modern_llm.experiment.problems import SampledSolutions
from modern_llm.experiment.training import (
    Parts,
    Selection,
    Session,
    TrainingTask,
    require_metric,
    tell_skipped,
)
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel

if TYPE_CHECKING:
    import numpy as np

    from modern_llm.data.batches import Encoded
    from modern_llm.data.rows import Part
    from modern_llm.data.solutions.read import Solution, Solutions, SolutionWriter
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.experiment.record import Measured
    from modern_llm.pretrained.loaded import LoadedModel
    from modern_llm.training.memory.plan import Step

_PICTURE = "calibration.png"
HEADLINE = ("roc_auc", "accuracy", "brier", "ece", "base_rate", "picked_accuracy")


_DEFAULTS = Defaults("task/verifier")


@dataclass(frozen=True, kw_only=True)
class Verifier(TrainingTask):
    """Train to tell right answers from wrong ones, choose checkpoint, calibration and threshold on the answers to
    held-out problems, report on those to others.

    Args:
        model, trainer, hardware, logger, paths, seed, suggested_steps, objective_metric: as in `TrainingTask`. The
            model is an encoder from scratch, or a pretrained body with a head on its last token.
        data: answers with marks, or how they are sampled.
        tokenizer: of an encoder from scratch; a pretrained model brings its own.
        text: how problem and answer become one text.
        max_tokens: longest text; longer ones are left out, and counted.
        max_train_problems, max_evaluation_problems: samples drawn by the seed; null: all.

    Raises:
        ValueError: an impossible combination.
    """

    model: VerifierConfig | PretrainedModel | ModelFromRun
    data: SolutionData | SampledSolutions
    tokenizer: TokenizerChoice = field(default_factory=BPETokenizer)
    text: SolutionText = field(default_factory=SolutionText)
    max_tokens: int = _DEFAULTS("max_tokens")
    max_train_problems: int | None = _DEFAULTS("max_train_problems")
    max_evaluation_problems: int | None = _DEFAULTS("max_evaluation_problems")
    suggested_steps: int = _DEFAULTS("suggested_steps")
    objective_metric: str = _DEFAULTS("objective_metric")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_metric(self, (*HEADLINE, "train_loss"), ("loss", "accuracy", "roc_auc"))

    def read(self, at: Session) -> _Read:
        from modern_llm.data.solutions.read import read_solutions

        mirror, data = self.paths.mirror, self.data
        if isinstance(data, SampledSolutions):
            data = data.drawn(at.folder, at.runtime, at.rows, mirror, self.seed)
        parts = read_solutions(data, mirror, self.max_train_problems, self.max_evaluation_problems, self.seed)
        return _Read(data.source.name, parts)

    def load(self, at: Session) -> LoadedModel:
        from modern_llm.data.solutions.read import LABELS, SolutionTexts
        from modern_llm.experiment.loading import load_model
        from modern_llm.models.verifier import VerifierModel
        from modern_llm.pretrained.loaded import OwnVerifier

        if not isinstance(self.model, VerifierConfig):
            return load_model(self.model, at.runtime, self.paths.mirror, LABELS, train=True)
        train = at.data.parts["train"]
        texts = [self.text(row.question, row.answer) for row in train.rows]
        source = SolutionTexts(texts, f"{train.fingerprint} {self.text}")
        tokenizer = self.tokenizer.prepare(source, self.paths.cache_folder, self.paths.mirror)
        model = VerifierModel(self.model.with_vocab_size(tokenizer.vocab_size), LABELS)
        return OwnVerifier.of(model.to(at.runtime.device), tokenizer, "verifier from scratch")

    def sketch(self, at: Session) -> LoadedModel:
        from modern_llm.data.solutions.read import LABELS
        from modern_llm.data.text.sources import PythonDocs
        from modern_llm.models.verifier import VerifierModel
        from modern_llm.pretrained.loaded import OwnVerifier

        if not isinstance(self.model, VerifierConfig):
            return self.load(at)
        # Only the number of ids matters, and a tokenizer that is trained says it beforehand.
        known, cache, mirror = isinstance(self.tokenizer, BPETokenizer), self.paths.cache_folder, self.paths.mirror
        tokenizer = (ByteTokenizer() if known else self.tokenizer).prepare(PythonDocs(), cache, mirror)
        size = self.tokenizer.vocab_size if isinstance(self.tokenizer, BPETokenizer) else tokenizer.vocab_size
        return OwnVerifier.of(VerifierModel(self.model.with_vocab_size(size), LABELS), tokenizer, "verifier")

    def rehearsal(self, at: Session) -> Step:
        from modern_llm.data.batches import ClassificationBatch, Encoded
        from modern_llm.experiment.loading import room_in
        from modern_llm.objectives.classification import Classification
        from modern_llm.training.memory.plan import Step

        collate = ClassificationBatch(at.loaded.tokenizer.eos_id)
        item = Encoded(0, [0] * room_in(at.loaded, self.max_tokens), [], 0)
        return Step(at.loaded.model, Classification(), lambda rows: collate([item] * rows))

    def parts(self, at: Session) -> Parts:
        from modern_llm.data.batches import ClassificationBatch, LengthBatches
        from modern_llm.objectives.classification import Classification

        read, tokenizer, writer = at.data, at.loaded.tokenizer, self._writer(at)
        for part in PARTS:
            read.items[part], read.parts[part] = writer.encode(read.name, part, read.parts[part])
            solutions = read.parts[part]
            tell_skipped(f"{part}, {len(solutions.problems):,} problems", len(read.items[part]), solutions.skipped)
        identity = [read.parts["train"].fingerprint, str(self.text), tokenizer.fingerprint, writer.max_tokens]
        collate, size = ClassificationBatch(tokenizer.eos_id), self.trainer.batch_size
        stream = LengthBatches(read.items["train"], size, self.seed, collate, content_fingerprint(identity))
        further = (("roc_auc",), lambda: self._roc_auc(at)) if self.trainer.monitor == "validation_roc_auc" else None
        objective = Classification()
        held_out = read.items["selection"]
        return Parts(stream, objective, Selection(at, objective, held_out, collate, further))

    def measure(self, at: Session) -> Measured:
        from modern_llm.experiment.record import Measured, evaluated_on

        read = at.data
        verifier = self._calibrated(at)
        assert at.checkpoint is not None
        checkpoint = at.checkpoint.relative_to(at.folder.path).as_posix()
        at.folder.write_json(VERIFIER_FILE, {"checkpoint": checkpoint, **verifier.facts()})
        items, evaluation = read.items["evaluation"], read.parts["evaluation"]
        metrics, more = measure_answers(verifier, items, evaluation.rows, at.rows, self.seed, at.folder)
        protocol = {
            "data": read.name,
            "parts": {str(part): described(read.parts[part]) for part in PARTS},
            "chosen_on_the_selection_part": ["checkpoint", "calibration", "threshold"],
            **how_measured(verifier),
            "train_fingerprint": read.parts["train"].fingerprint,
        }
        return Measured(metrics, HEADLINE, {"": evaluated_on(judged(evaluation), len(items))}, protocol, more)

    def _writer(self, at: Session) -> SolutionWriter:
        from modern_llm.data.solutions.read import SolutionWriter
        from modern_llm.experiment.loading import room_in

        loaded = at.loaded
        return SolutionWriter(self.text, loaded.tokenizer, loaded.start_ids, room_in(loaded, self.max_tokens))

    def _selection_scores(self, at: Session) -> tuple[np.ndarray, np.ndarray]:
        """Log-odds of the selection part's answers, and their marks."""
        import numpy as np

        from modern_llm.evaluation.verifier import log_odds

        texts = [item.input_ids for item in at.data.items["selection"]]
        scores = log_odds(at.loaded.classifier, texts, at.rows, at.runtime, progress_of("held-out answers"))
        return scores, np.array([row.correct for row in at.data.parts["selection"].rows])

    def _roc_auc(self, at: Session) -> dict[str, float]:
        from modern_llm.evaluation.metrics.verification import RocAuc

        scores, correct = self._selection_scores(at)
        return RocAuc().compute(predictions=scores.tolist(), references=correct.astype(int).tolist())

    def _calibrated(self, at: Session) -> AnswerVerifier:
        """The trained model with calibration and threshold, both fitted on the selection part."""
        from modern_llm.evaluation.metrics.calibration import choose_threshold, fit_calibration
        from modern_llm.evaluation.verifier import AnswerVerifier

        scores, correct = self._selection_scores(at)
        calibration = fit_calibration(scores, correct)
        threshold = choose_threshold(calibration(scores), correct)
        parts = at.data.parts
        known = frozenset([*parts["train"].problems, *parts["selection"].problems])
        return AnswerVerifier(at.loaded.classifier, self._writer(at), at.runtime, calibration, threshold, known)


@dataclass
class _Read:
    """Answers in three parts.

    Attributes:
        name: of their source.
        parts: as they were read, without those that are too long once they are ids.
        items: the same as ids.
    """

    name: str
    parts: dict[Part, Solutions]
    items: dict[Part, list[Encoded]] = field(default_factory=dict)


def judged(solutions: Solutions) -> str:
    """Fingerprint of the answers that are judged."""
    return content_fingerprint([[row.question, row.answer, row.correct] for row in solutions.rows])


def measure_answers(
    verifier: AnswerVerifier, items: list[Encoded], rows: list[Solution], batch_size: int, seed: int, folder: RunFolder
) -> tuple[dict[str, float], dict[str, Any]]:
    """Judge marked answers, and write what became of each, and the calibration curve.

    Args:
        verifier: in evaluation mode.
        items, rows: the answers, as ids and as they were read.
        batch_size: texts per forward pass.
        seed: of the intervals.
        folder: what is written to.

    Returns:
        All figures, and what `report` shows of them: errors, table and picture.
    """
    import numpy as np

    from modern_llm.evaluation.metrics.calibration import Calibration, reliability
    from modern_llm.evaluation.metrics.verification import measure_uncalibrated, measure_verifier
    from modern_llm.evaluation.verifier import log_odds
    from modern_llm.reporting.curves import draw_reliability

    texts, threshold = [item.input_ids for item in items], verifier.threshold
    scores = log_odds(verifier.model, texts, batch_size, verifier.runtime, progress_of("evaluating"))
    probabilities, correct = verifier.calibration(scores), np.array([row.correct for row in rows])
    problems = [row.problem for row in rows]
    metrics = measure_verifier(probabilities, correct, problems, threshold, seed)
    metrics |= measure_uncalibrated(scores, correct, problems, seed) | {"threshold": threshold}
    predictions = _predictions(rows, probabilities, threshold)
    wrong = [row for row in predictions if row["accepted"] != row["correct"]]
    wrong.sort(key=lambda row: -abs(row["probability"] - row["correct"]))
    folder.write_lines("predictions.jsonl", predictions)
    folder.write_lines("errors.jsonl", wrong)
    curve = reliability(probabilities, correct)
    draw_reliability(curve, folder.path / _PICTURE, reliability(Calibration()(scores), correct))
    return metrics, {"errors": wrong[:50], "tables": {"Calibration": curve}, "pictures": {"Reliability": _PICTURE}}


def how_measured(verifier: AnswerVerifier) -> dict[str, Any]:
    """What to know of the figures."""
    return {
        "threshold": verifier.threshold,
        "calibration": asdict(verifier.calibration),
        "intervals": "95 %, by drawing whole problems",
    }


def _predictions(rows: list[Solution], probabilities: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """What became of every answer."""
    return [
        {
            "index": row.index,
            "question": row.question,
            "answer": row.answer,
            "correct": row.correct,
            "probability": round(float(p), 6),
            "accepted": bool(p >= threshold),
        }
        for row, p in zip(rows, probabilities, strict=True)
    ]


def described(solutions: Solutions) -> dict[str, Any]:
    """What a part holds, for the record."""
    rows = solutions.rows
    return {
        "split": solutions.split,
        "problems": len(solutions.problems),
        "answers": len(rows),
        "right": sum(row.correct for row in rows) / len(rows),
        "left_out": solutions.skipped,
    }
