"""From answers to metrics with intervals, and to the examples that went wrong, worst first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modern_llm.data.labelled import Example
from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
from modern_llm.evaluation.metrics.library import measure, scorers
from modern_llm.models.decoding.generation import Continuation


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
    metrics: Sequence[str],
    labels: list[str],
    scores: np.ndarray,
    examples: Sequence[Example],
    inputs: Sequence[str],
    seed: int,
) -> Scored:
    """Metrics of the best-scored label.

    Args:
        metrics: names in the registry, of answers that are labels.
        labels: C words.
        scores: (N, C) log-likelihoods, up to a constant per row.
        examples, inputs: N examples and what the model read of them.
        seed: of the intervals.
    """
    chosen, right = scores.argmax(1).tolist(), [-1 if e.label is None else e.label for e in examples]
    measured = _measured(metrics, labels, chosen, right, seed)
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
    return Scored(measured, predictions)


def score_choices(
    metrics: Sequence[str], scores: np.ndarray, examples: Sequence[Example], inputs: Sequence[str], seed: int
) -> Scored:
    """Metrics of the likeliest choice of each example among its own.

    `normalised_accuracy` is that of the likeliest per character, which a choice does not lose by being long (Brown et
    al. 2020, arXiv 2005.14165, section 2.4 divides by tokens; lm-evaluation-harness's `acc_norm` by characters).

    Args:
        metrics: names in the registry, of answers that are choices.
        scores: (N, C) log-likelihoods; -inf where an example has fewer choices.
        examples, inputs: N examples and what the model read of them.
        seed: of the intervals.
    """
    lengths = np.ones_like(scores)
    for row, example in enumerate(examples):
        lengths[row, : len(example.choices)] = [max(len(choice), 1) for choice in example.choices]
    truth = np.array([example.label for example in examples])
    right = {
        "accuracy": (scores.argmax(1) == truth).astype(float),
        "normalised_accuracy": ((scores / lengths).argmax(1) == truth).astype(float),
    }
    measured: dict[str, float] = {}
    for name in metrics:
        low, high = bootstrap_interval(right[name], seed=seed)
        measured |= {name: float(right[name].mean()), f"{name}_low": low, f"{name}_high": high}
    judged = scores if metrics[0] == "accuracy" else scores / lengths
    shifted = np.exp(judged - judged.max(1, keepdims=True))
    chance = shifted / shifted.sum(1, keepdims=True)
    predictions = [
        Prediction(
            example.index,
            text,
            example.target,
            example.choices[guess],
            float(good),
            0.0 if good else float(p[guess]),
            f"p({example.choices[guess]}) = {p[guess]:.3f}",
        )
        for example, text, guess, good, p in zip(
            examples, inputs, judged.argmax(1).tolist(), right[metrics[0]].tolist(), chance, strict=True
        )
    ]
    return Scored(measured, predictions)


def score_texts(
    metrics: Sequence[str],
    written: Sequence[Continuation],
    examples: Sequence[Example],
    inputs: Sequence[str],
    seed: int,
) -> Scored:
    """Metrics of free text; errors are ordered by the first one's scorer.

    Args:
        metrics: names in the registry, of answers that are texts.
        written: N answers of the model.
        examples, inputs: N examples and what the model read of them.
        seed: of the intervals.
    """
    texts, references = [c.text.strip() for c in written], [example.target for example in examples]
    measured = _measured(metrics, [], texts, references, seed)
    measured["cut_off_share"] = float(np.mean([not continuation.ended for continuation in written]))
    judge = scorers(metrics)[0]
    quality = judge.quality(texts, references).tolist()
    predictions = []
    for example, shown, text, answer, good in zip(examples, inputs, texts, written, quality, strict=True):
        badness, why = judge.fault(text, example.target, good, answer.ended)
        predictions.append(Prediction(example.index, shown, example.target, text, good, badness, why))
    return Scored(measured, predictions)


def _measured(
    metrics: Sequence[str], labels: Sequence[str], predictions: Sequence[Any], references: Sequence[Any], seed: int
) -> dict[str, float]:
    """The chosen figures with the bounds of their intervals, in the order in which they were chosen."""
    every: dict[str, float] = {}
    for scorer in scorers(metrics, labels):
        every |= measure(scorer, predictions, references, seed)
    return {key: every[key] for name in metrics for key in (name, f"{name}_low", f"{name}_high")}
