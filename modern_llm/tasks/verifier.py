"""A verifier: trained on answers that are marked right or wrong, it tells how likely another answer is right."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.data.solutions.settings import SolutionData, SolutionText
from modern_llm.data.text.tokenizers import BPETokenizer, TokenizerChoice
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.problems import SampledSolutions
from modern_llm.experiment.training import require_metric, require_positive
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.pretrained.settings import ModelFromRun, PretrainedModel
from modern_llm.training.loggers import FilesOnly, Logger
from modern_llm.training.settings import Hardware, TrainerSettings

if TYPE_CHECKING:
    import numpy as np

    from modern_llm.data.batches import Encoded
    from modern_llm.data.rows import Part
    from modern_llm.data.solutions.read import Solution, Solutions, SolutionWriter
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.pretrained.loading import LoadedModel
    from modern_llm.training.runtime import Runtime

VERIFIER_FILE = "verifier.json"
_PICTURE = "calibration.png"
HEADLINE = ("roc_auc", "accuracy", "brier", "ece", "base_rate", "picked_accuracy")


@dataclass(frozen=True)
class Verifier:
    """Train to tell right answers from wrong ones, choose checkpoint, calibration and threshold on the answers to
    held-out problems, report on those to others.

    Args:
        model, trainer, hardware, logger, paths, seed: of the same names in the configuration. The model is an encoder
            from scratch, or a pretrained body with a head on its last token.
        data: answers with marks, or how they are sampled.
        tokenizer: of an encoder from scratch; a pretrained model brings its own.
        text: how problem and answer become one text.
        max_tokens: longest text; longer ones are left out, and counted.
        max_train_problems, max_evaluation_problems: samples drawn by the seed; null: all.
        suggested_steps: what `trainer.max_steps` is unless set.
        objective_metric: final metric that a sweep optimises.

    Raises:
        ValueError: an impossible combination.
    """

    model: VerifierConfig | PretrainedModel | ModelFromRun | ModernLLMConfig
    trainer: TrainerSettings
    hardware: Hardware
    data: SolutionData | SampledSolutions
    logger: Logger = field(default_factory=FilesOnly)
    paths: Paths = field(default_factory=Paths)
    seed: int = 0
    tokenizer: TokenizerChoice = field(default_factory=BPETokenizer)
    text: SolutionText = field(default_factory=SolutionText)
    max_tokens: int = 512
    max_train_problems: int | None = None
    max_evaluation_problems: int | None = None
    suggested_steps: int = 300
    objective_metric: str = "roc_auc"

    def __post_init__(self) -> None:
        if isinstance(self.model, ModernLLMConfig):
            raise ValueError(
                "model: a decoder with random weights is no start for a verifier. "
                "Choose model=verifier for an encoder from scratch, or a pretrained body: model=smollm2_135m, gpt2, …, "
                "or model=from_run with model.path=<folder of a run>."
            )
        require_positive(self, "max_train_problems", "max_evaluation_problems", "suggested_steps")
        require(self.max_tokens >= 8, "task.max_tokens", self.max_tokens, "must be at least 8", "Raise it")
        require_metric(self, (*HEADLINE, "train_loss"), ("validation_loss",))

    def run(self, folder: RunFolder) -> dict[str, float]:
        """Train from where the folder stands, then calibrate, measure and report. Returns the final metrics."""
        import torch

        from modern_llm.data.batches import ClassificationBatch, LengthBatches
        from modern_llm.data.rows import content_fingerprint
        from modern_llm.data.solutions.read import PARTS, SolutionWriter, read_solutions
        from modern_llm.experiment.training import SelectionLoss, fit, report, room_in, tell_model, tell_skipped
        from modern_llm.objectives.classification import Classification
        from modern_llm.training.runtime import Runtime

        runtime, rows, mirror = Runtime(self.hardware), self.hardware.eval_rows, self.paths.mirror
        data = self.data
        if isinstance(data, SampledSolutions):
            data = data.drawn(folder, runtime, rows, mirror, self.seed)
        parts = read_solutions(data, mirror, self.max_train_problems, self.max_evaluation_problems, self.seed)
        torch.manual_seed(self.seed)  # behind the sampling, which a resumed run has done already
        loaded = self._load(runtime, parts["train"])
        tell_model(loaded, runtime, train=True)
        writer = SolutionWriter(self.text, loaded.tokenizer, loaded.start_ids, room_in(loaded, self.max_tokens))
        name = data.source.name
        items = {}
        for part in PARTS:
            items[part], parts[part] = writer.encode(name, part, parts[part])
            tell_skipped(f"{part}, {len(parts[part].problems):,} problems", len(items[part]), parts[part].skipped)
        identity = [parts["train"].fingerprint, str(self.text), loaded.tokenizer.fingerprint, writer.max_tokens]
        collate = ClassificationBatch(loaded.tokenizer.eos_id)
        batch_size, fingerprint = self.trainer.batch_size, content_fingerprint(identity)
        stream = LengthBatches(items["train"], batch_size, self.seed, collate, fingerprint)
        objective = Classification()
        evaluator = SelectionLoss(objective, items["selection"], collate, rows, runtime)
        result, metrics = fit(self, folder, runtime, loaded, stream, objective, evaluator)

        verifier = self._calibrated(loaded, runtime, writer, items["selection"], parts)
        checkpoint = result.best_checkpoint or result.last_checkpoint
        assert checkpoint is not None
        folder.write_json(
            VERIFIER_FILE, {"checkpoint": checkpoint.relative_to(folder.path).as_posix(), **verifier.facts()}
        )
        judged, more = measure_answers(verifier, items["evaluation"], parts["evaluation"].rows, rows, self.seed, folder)
        metrics |= judged | {"epochs": stream.epochs, "padding_share": stream.padding_share}
        protocol = {
            "data": name,
            "parts": {str(part): described(parts[part]) for part in PARTS},
            "chosen_on_the_selection_part": ["checkpoint", "calibration", "threshold"],
            **how_measured(verifier),
            "data_fingerprint": parts["train"].fingerprint,
            "base_fingerprint": loaded.fingerprint,
        }
        report(self, folder, runtime, metrics, HEADLINE, protocol, checkpoint, **more)
        return metrics

    def _load(self, runtime: Runtime, train: Solutions) -> LoadedModel:
        from modern_llm.data.solutions.read import LABELS, SolutionTexts
        from modern_llm.experiment.loading import load_model
        from modern_llm.models.verifier import VerifierModel
        from modern_llm.pretrained.loading import own_verifier

        assert not isinstance(self.model, ModernLLMConfig)
        if not isinstance(self.model, VerifierConfig):
            return load_model(self.model, runtime, self.paths.mirror, LABELS, train=True)
        texts = [self.text(row.question, row.answer) for row in train.rows]
        source = SolutionTexts(texts, f"{train.fingerprint} {self.text}")
        tokenizer = self.tokenizer.prepare(source, self.paths.cache_folder, self.paths.mirror)
        model = VerifierModel(self.model.with_vocab_size(tokenizer.vocab_size), LABELS)
        return own_verifier(model.to(runtime.device), tokenizer, "verifier from scratch")

    def _calibrated(
        self,
        loaded: LoadedModel,
        runtime: Runtime,
        writer: SolutionWriter,
        items: list[Encoded],
        parts: dict[Part, Solutions],
    ) -> AnswerVerifier:
        """The trained model with calibration and threshold, both fitted on the selection part, of which `items` are."""
        import numpy as np

        from modern_llm.evaluation.metrics.calibration import choose_threshold, fit_calibration
        from modern_llm.evaluation.verifier import AnswerVerifier, log_odds
        from modern_llm.experiment.examples import progress_of

        model: Any = loaded.model
        texts = [item.input_ids for item in items]
        scores = log_odds(model, texts, self.hardware.eval_rows, runtime, progress_of("calibrating"))
        correct = np.array([row.correct for row in parts["selection"].rows])
        calibration = fit_calibration(scores, correct)
        threshold = choose_threshold(calibration(scores), correct)
        known = frozenset([*parts["train"].problems, *parts["selection"].problems])
        return AnswerVerifier(model, writer, runtime, calibration, threshold, known)


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
    from modern_llm.experiment.examples import progress_of
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


def load_verifier(path: str, runtime: Runtime, mirror: str | None = None) -> AnswerVerifier:
    """The verifier that a run of `task=verifier` trained, with its calibration and threshold.

    Args:
        path: folder of the run.
        runtime: the machine it is for.
        mirror: root of the mirror, where its body is from the hub.

    Raises:
        ValueError: the folder is of no such run, or of one that has not finished.
    """
    from modern_llm.data.solutions.read import LABELS, SolutionWriter
    from modern_llm.evaluation.metrics.calibration import Calibration
    from modern_llm.evaluation.verifier import AnswerVerifier
    from modern_llm.experiment.loading import load_model
    from modern_llm.experiment.training import tell_model

    facts = _facts(path)
    choice = ModelFromRun(str(Path(path).expanduser().resolve() / facts["checkpoint"]))
    loaded = load_model(choice, runtime, mirror, LABELS, train=False)
    loaded.model.eval()
    tell_model(loaded, runtime, train=False)
    return AnswerVerifier(
        loaded.model,  # type: ignore[arg-type]
        SolutionWriter(SolutionText(**facts["text"]), loaded.tokenizer, loaded.start_ids, facts["max_tokens"]),
        runtime,
        Calibration(**facts["calibration"]),
        facts["threshold"],
        frozenset(facts["known_problems"]),
    )


def known_problems(path: str) -> frozenset[str]:
    """`problem_id` of every problem that the verifier of a run was trained or calibrated on, without loading it."""
    return frozenset(_facts(path)["known_problems"])


def _facts(path: str) -> dict[str, Any]:
    import json

    require_verifier(path)
    return json.loads((Path(path).expanduser() / VERIFIER_FILE).read_text())


def require_verifier(path: str) -> None:
    """Refuse a folder that holds no verifier."""
    require((Path(path).expanduser() / VERIFIER_FILE).is_file(), "task.verifier", path, "holds no finished verifier",
            "Give the folder of a run of task=verifier, or null for none")  # fmt: skip
