"""Accuracy, macro-F1, exact match and ROUGE as `evaluate.Metric`s that need no network and write no file.

All scores are fractions in [0, 1]. `evaluate` takes seconds to import: import this module where an evaluation runs,
never when a module is loaded.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval, estimate, mean
from modern_llm.evaluation.metrics.numbers import (
    failure_kind,
    flexible_answer,
    reference_answer,
    same_number,
    strict_answer,
)
from modern_llm.evaluation.metrics.registry import METRICS


class ExampleMetric(evaluate.Metric, ABC):
    """A metric that also scores each example alone.

    Examples stay in the memory of the process, so any number of processes may measure at once. In a distributed run,
    gather the predictions and measure in one process.
    """

    example_type: str  # as Arrow names it: "int64" or "string"

    @classmethod
    def over(cls, labels: Sequence[str]) -> ExampleMetric:
        """The metric for answers with these label words; free text has none."""
        return cls()

    def __init__(self) -> None:
        super().__init__(keep_in_memory=True)

    @abstractmethod
    def per_example(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, np.ndarray]:
        """Scores by name, each (N,) in the order of the examples, so that errors can be ranked.

        Raises:
            ValueError: no examples, unequal lengths, or values of another type than the metric's.
        """

    def outcomes(self, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, np.ndarray]:
        """What each figure is a `statistic` of, by name, each (N, ...): the scores themselves unless overridden."""
        return self.per_example(predictions, references)

    def statistic(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """(K, ...) distinct outcomes, (R, K) counts -> (R,) the figure of each of R samples."""
        return mean(outcomes, counts)

    def quality(self, predictions: Sequence[Any], references: Sequence[Any]) -> np.ndarray:
        """(N,) how good each answer is, in [0, 1], by which errors are ordered: the first score unless overridden."""
        return next(iter(self.per_example(predictions, references).values()))

    def fault(self, prediction: Any, reference: Any, quality: float, ended: bool) -> tuple[float, str]:
        """How bad an answer is, in [0, 1], and why, in a word or a number.

        Args:
            prediction, reference: the answer, and the right one.
            quality: of `quality`.
            ended: whether the answer ended by itself.
        """
        return 1 - quality, "" if quality in (0, 1) else f"{quality:.3f}"

    def add_batch(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> None:
        """Add examples; raises as `per_example` does."""
        # Arrow would turn 0.9 into 0, and None into the text "None".
        predictions, references = self._checked(predictions, references)
        super().add_batch(predictions=predictions, references=references)

    def add(self, *, prediction: Any, reference: Any) -> None:
        """Add one example; raises as `per_example` does."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(
        self, *, predictions: Sequence[Any] | None = None, references: Sequence[Any] | None = None
    ) -> dict[str, float]:
        """Fractions in [0, 1] by name, over these examples and those added before; raises as `per_example` does."""
        if predictions is None and references is None and self.writer is None:
            raise ValueError(_NO_EXAMPLES)
        return super().compute(predictions=predictions, references=references)

    def _compute(self, *, predictions: Sequence[Any], references: Sequence[Any]) -> dict[str, float]:
        return {name: estimate(o, self.statistic) for name, o in self.outcomes(predictions, references).items()}

    def _checked(self, predictions: Any, references: Any) -> tuple[Any, Any]:
        """Both as lists of text or as int64 arrays, equally long and not empty."""
        checked = _labels if self.example_type == "int64" else _texts
        predictions, references = checked("predictions", predictions), checked("references", references)
        if len(predictions) != len(references):
            raise ValueError(
                f"{len(predictions)} predictions for {len(references)} references: each reference needs one. "
                "Where there is no answer, predict an empty text or the label -1."
            )
        if len(predictions) == 0:
            raise ValueError(_NO_EXAMPLES)
        return predictions, references

    def _info(self) -> evaluate.MetricInfo:
        value = datasets.Value(self.example_type)
        return evaluate.MetricInfo(
            description=self.__class__.__doc__ or "",
            citation="",
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _build_data_dir(self) -> str:
        # The base class makes this folder below the user's cache; nothing would ever be in it.
        return str(Path(self._data_dir_root) / self.name)


class Accuracy(ExampleMetric):
    """Fraction of labels that are right: `accuracy`. An unparseable prediction, -1, is wrong."""

    example_type = "int64"

    def per_example(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, np.ndarray]:
        predicted, actual = self._checked(predictions, references)
        return {"accuracy": (predicted == actual).astype(float)}


class MacroF1(ExampleMetric):
    """Mean of the classes' F1: `macro_f1`.

    Args:
        labels: the classes. None: those that occur among predictions or references, as in scikit-learn, so that an
            unparseable prediction, -1, makes a class of its own with F1 0. With labels it is only a miss.

    A class of `labels` that occurs nowhere has F1 0. An interval draws whole examples: with labels None, a resample is
    averaged over the classes that occur in it.
    """

    example_type = "int64"

    def __init__(self, labels: Sequence[int] | None = None) -> None:
        super().__init__()
        self.labels = None if labels is None else np.unique(_labels("labels", labels))

    @classmethod
    def over(cls, labels: Sequence[str]) -> ExampleMetric:
        return cls(range(len(labels)))

    def per_example(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, np.ndarray]:
        """`correct`, (N,): macro-F1 is no mean over examples, so theirs is whether the label is right."""
        predicted, actual = self._checked(predictions, references)
        return {"correct": (predicted == actual).astype(float)}

    def outcomes(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, np.ndarray]:
        return {"macro_f1": np.stack(self._checked(predictions, references), axis=1)}  # (N, 2)

    def statistic(self, outcomes: np.ndarray, counts: np.ndarray) -> np.ndarray:
        classes = np.unique(outcomes) if self.labels is None else self.labels
        predicted, actual = (outcomes[:, [column]] == classes for column in (0, 1))  # (K, C)
        hits, either = counts @ (predicted & actual), counts @ predicted + counts @ actual  # (R, C)
        f1 = 2 * hits / np.maximum(either, 1)
        averaged = (either > 0).sum(1) if self.labels is None else len(classes)
        return f1.sum(1) / averaged


class ExactMatch(ExampleMetric):
    """Fraction of texts that equal their references: `exact_match`. Two empty texts are equal.

    Args:
        equal: compares prediction and reference. None: character by character, but for white space around them.
            `numbers.same_number` compares GSM8K's answers.
    """

    example_type = "string"

    def __init__(self, equal: Callable[[str, str], bool] | None = None) -> None:
        super().__init__()
        self.equal = equal or (lambda prediction, reference: prediction.strip() == reference.strip())

    def per_example(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(*self._checked(predictions, references), strict=True)
        return {"exact_match": np.array([self.equal(p, r) for p, r in pairs], dtype=float)}


class NumberMatch(ExampleMetric):
    """Fraction of answers whose number is that of the reference, as GSM8K compares them; a base for ways of reading.

    Attributes:
        figure: name of the figure.
    """

    example_type = "string"
    figure: str

    @abstractmethod
    def read(self, text: str) -> str | None:
        """The number of an answer, or None."""

    def per_example(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(*self._checked(predictions, references), strict=True)
        right = [same_number(self.read(p) or "", reference_answer(r)) for p, r in pairs]
        return {self.figure: np.array(right, dtype=float)}

    def quality(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """1 where the last number is right, whichever way is counted."""
        pairs = zip(*self._checked(predictions, references), strict=True)
        return np.array([same_number(flexible_answer(p), reference_answer(r)) for p, r in pairs], dtype=float)

    def fault(self, prediction: Any, reference: Any, quality: float, ended: bool) -> tuple[float, str]:
        """How far off the number is, and the kind of failure."""
        right = reference_answer(reference)
        kind = failure_kind(prediction, right, hit_length_limit=not ended)
        found = flexible_answer(prediction)
        if found is None:
            return 1.0, kind or ""
        off, size = abs(Decimal(found) - Decimal(right)), abs(Decimal(right)) + 1
        return float(off / (off + size)), kind or ""


class StrictMatch(NumberMatch):
    """`strict_match`: the number behind `####` counts."""

    figure = "strict_match"

    def read(self, text: str) -> str | None:
        return strict_answer(text)


class FlexibleMatch(NumberMatch):
    """`flexible_match`: the last number counts."""

    figure = "flexible_match"

    def read(self, text: str) -> str | None:
        return flexible_answer(text)


class Rouge(ExampleMetric):
    """F-measures of ROUGE: `rouge1`, `rouge2`, `rougeL`, `rougeLsum` (Lin 2004), with rouge-score and its stemmer.

    rougeLsum compares sentence by sentence. As in rouge-score, lines are sentences; a text on one line is split behind
    each `.`, `!` or `?` (and the quotes and brackets that close it) that white space follows, so also behind `Mr.`. The
    others see no sentences. A text without a letter a-z or a digit has no words, and scores 0, also against itself.
    """

    example_type = "string"
    names = ("rouge1", "rouge2", "rougeL", "rougeLsum")

    def __init__(self) -> None:
        from rouge_score.rouge_scorer import RougeScorer

        super().__init__()
        self.scorer = RougeScorer(self.names, use_stemmer=True)

    def per_example(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
        pairs = zip(*self._checked(predictions, references), strict=True)
        scores = [self.scorer.score(target=_lines(r), prediction=_lines(p)) for p, r in pairs]
        return {name: np.array([score[name].fmeasure for score in scores], dtype=float) for name in self.names}

    def quality(self, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """ROUGE-L."""
        return self.per_example(predictions, references)["rougeL"]

    def fault(self, prediction: Any, reference: Any, quality: float, ended: bool) -> tuple[float, str]:
        return 1 - quality, f"ROUGE-L {quality:.3f}"


def measure(
    metric: ExampleMetric,
    predictions: Sequence[Any],
    references: Sequence[Any],
    seed: int,
    *,
    resamples: int = 1000,
    level: float = 0.95,
    groups: np.ndarray | None = None,
) -> dict[str, float]:
    """A metric with bootstrap intervals: `accuracy`, `accuracy_low`, `accuracy_high`, and so on; fractions in [0, 1].

    Args:
        metric: any of this module, or of `verification.py`.
        predictions, references: (N,) labels, texts or probabilities.
        seed, resamples, level, groups: as in `bootstrap_interval`.

    Raises:
        ValueError: as in `ExampleMetric.per_example` and `bootstrap_interval`.
    """
    measured: dict[str, float] = {}
    for name, outcomes in metric.outcomes(predictions, references).items():
        low, high = bootstrap_interval(
            outcomes, metric.statistic, seed=seed, resamples=resamples, level=level, groups=groups
        )
        measured |= {name: estimate(outcomes, metric.statistic), f"{name}_low": low, f"{name}_high": high}
    return measured


def scorers(names: Sequence[str], labels: Sequence[str] = ()) -> list[ExampleMetric]:
    """What scores these metrics of the registry, each once however many figures it gives; the first one's first."""
    classes = dict.fromkeys(METRICS[name].scorer for name in names)
    return [_scorer(path).over(labels) for path in classes]


def _scorer(path: str) -> type[ExampleMetric]:
    """A class of this module, or one of a plug-in by its dotted path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module or __name__), name)


_NO_EXAMPLES = "there are no examples to score. Give at least one prediction and its reference, or use a larger split."
_SENTENCE_END = re.compile(r"([.!?][\"'”’)\]]*)\s+")


def _lines(text: str) -> str:
    """The text with one sentence a line, unless it has lines already."""
    text = text.strip()
    return text if "\n" in text else _SENTENCE_END.sub(r"\1\n", text)


def _labels(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise ValueError(
            f"{name} of type {array.dtype} and shape {array.shape}: labels are one integer an example. "
            "Take the class of the highest score first, and -1 where there is no answer."
        )
    return array.astype(np.int64)


def _texts(name: str, values: Any) -> list[str]:
    if isinstance(values, str):
        raise ValueError(f"{name}={values!r}: is one text, where a list of them is needed. Put it in a list.")
    texts = list(() if values is None else values)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{index}]={text!r}: is no text. Use an empty text where there is no answer.")
    return [str(text) for text in texts]
