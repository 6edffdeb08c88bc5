"""From answers to metrics with intervals, and to the examples that went wrong, worst first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from modern_llm.data.labelled import Example, Scoring
from modern_llm.evaluation.metrics.library import Accuracy, ExactMatch, ExampleMetric, MacroF1, Rouge, measure
from modern_llm.evaluation.metrics.numbers import (
    failure_kind,
    flexible_answer,
    reference_answer,
    same_number,
    strict_answer,
)
from modern_llm.models.generation import Continuation


@dataclass(frozen=True)
class Prediction:
    """What became of one example.

    Attributes:
        index: of the row in its split.
        input: what the model read.
        reference, prediction: the right answer, and the model's.
        score: 1 is right, 0 is wrong; ROUGE-L for summaries.
        badness: orders errors; the largest is the worst.
        detail: why it is wrong, in a word or a number.
    """

    index: int
    input: str
    reference: str
    prediction: str
    score: float
    badness: float
    detail: str = ""


@dataclass(frozen=True)
class Scored:
    """A split, answered.

    Attributes:
        metrics: each with the bounds of its 95 % interval, as `<name>_low` and `<name>_high`; fractions in [0, 1].
        predictions: in the order of the examples.
    """

    metrics: dict[str, float]
    predictions: list[Prediction]

    def errors(self) -> list[dict[str, Any]]:
        """Examples that are not perfectly right, worst first."""
        wrong = sorted((p for p in self.predictions if p.score < 1), key=lambda p: -p.badness)
        return [{k: v for k, v in asdict(p).items() if k != "badness"} for p in wrong]


def score_classes(
    labels: list[str], scores: np.ndarray, examples: Sequence[Example], inputs: Sequence[str], seed: int
) -> Scored:
    """Accuracy and macro-F1 of the best-scored label.

    Args:
        labels: C words.
        scores: (N, C) log-likelihoods, up to a constant per row.
        examples, inputs: N examples and what the model read of them.
        seed: of the intervals.
    """
    chosen, right = scores.argmax(1).tolist(), [-1 if e.label is None else e.label for e in examples]
    metrics = measure(Accuracy(), chosen, right, seed) | measure(MacroF1(list(range(len(labels)))), chosen, right, seed)
    shifted = np.exp(scores - scores.max(1, keepdims=True))
    chance = shifted / shifted.sum(1, keepdims=True)
    predictions = [
        Prediction(
            example.index,
            text,
            labels[truth],
            labels[guess],
            float(guess == truth),
            float(p[guess]) if guess != truth else 0.0,
            f"p({labels[guess]}) = {p[guess]:.3f}",
        )
        for example, text, truth, guess, p in zip(examples, inputs, right, chosen, chance, strict=True)
    ]
    return Scored(metrics, predictions)


def score_texts(
    scoring: Scoring, written: Sequence[Continuation], examples: Sequence[Example], inputs: Sequence[str], seed: int
) -> Scored:
    """Metrics of free text: ROUGE for summaries, exact match of numbers for GSM8K.

    Args:
        scoring: which.
        written: N answers of the model.
        examples, inputs: N examples and what the model read of them.
        seed: of the intervals.
    """
    score: Callable[..., Scored] = {"summaries": _score_summaries, "numbers": _score_numbers}[scoring]
    scored = score(written, examples, inputs, seed)
    scored.metrics["cut_off_share"] = float(np.mean([not continuation.ended for continuation in written]))
    return scored


def _score_summaries(
    written: Sequence[Continuation], examples: Sequence[Example], inputs: Sequence[str], seed: int
) -> Scored:
    texts, references = [c.text.strip() for c in written], [example.target for example in examples]
    metric = Rouge()
    metrics = measure(metric, texts, references, seed)
    quality = metric.per_example(texts, references)["rougeL"].tolist()
    rows = zip(examples, inputs, texts, quality, strict=True)
    return Scored(
        metrics, [Prediction(e.index, i, e.target, text, q, 1 - q, f"ROUGE-L {q:.3f}") for e, i, text, q in rows]
    )


def _score_numbers(
    written: Sequence[Continuation], examples: Sequence[Example], inputs: Sequence[str], seed: int
) -> Scored:
    references = [reference_answer(example.target) for example in examples]
    texts = [c.text for c in written]
    metrics: dict[str, float] = {}
    ways: list[tuple[str, Callable[[str], str | None]]] = [("strict", strict_answer), ("flexible", flexible_answer)]
    for name, read in ways:
        metric: ExampleMetric = ExactMatch(equal=same_number)
        found = [read(text) or "" for text in texts]
        measured = measure(metric, found, references, seed)
        metrics |= {key.replace("exact_match", f"{name}_match"): value for key, value in measured.items()}
    predictions = []
    for example, text, continuation, reference, shown in zip(examples, texts, written, references, inputs, strict=True):
        kind = failure_kind(text, reference, hit_length_limit=not continuation.ended)
        predictions.append(
            Prediction(
                example.index,
                shown,
                example.target,
                text,
                float(kind is None),
                _distance(flexible_answer(text), reference),
                kind or "",
            )
        )
    return Scored(metrics, predictions)


def _distance(found: str | None, reference: str) -> float:
    """How far off a number is, in [0, 1]; 1 without one."""
    if found is None:
        return 1.0
    off, size = abs(Decimal(found) - Decimal(reference)), abs(Decimal(reference)) + 1
    return float(off / (off + size))
