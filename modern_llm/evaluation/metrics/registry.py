"""Every figure that is better one way: one entry here, and monitors, sweeps, reports and messages know of it.

To add a metric of answers: one class in `library.py` and one entry below; `task.data.metrics=[<name>]` then chooses it.
A figure that a task measures by itself needs the entry alone. This module imports nothing heavy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Direction = Literal["lower", "higher"]
Answers = Literal["labels", "texts", "choices"]


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: as it stands in results; with a prefix where a task says of what (`validation_loss`).
        better: which way.
        answers: what it scores, where `task.data.metrics` may choose it: `labels`, `texts` or `choices`, or several
            of them; None: a task measures it by itself.
        scorer: the class of `library.py` that scores the answers and gives its interval; of a plug-in's, the dotted
            path.
        per_token: an average over tokens: comparable between runs with the same tokenizer only.
    """

    name: str
    better: Direction
    answers: Answers | tuple[Answers, ...] | None = None
    scorer: str = ""
    per_token: bool = False

    def scores(self, answers: Answers) -> bool:
        """Whether `task.data.metrics` may choose it for answers of a kind."""
        return answers in (self.answers if isinstance(self.answers, tuple) else (self.answers,))


_ALL = (
    # Of answers to labelled examples.
    Metric("accuracy", "higher", ("labels", "choices"), "Accuracy"),
    Metric("normalised_accuracy", "higher", "choices"),
    Metric("macro_f1", "higher", "labels", "MacroF1"),
    Metric("exact_match", "higher", "texts", "ExactMatch"),
    Metric("rouge1", "higher", "texts", "Rouge"),
    Metric("rouge2", "higher", "texts", "Rouge"),
    Metric("rougeL", "higher", "texts", "Rouge"),
    Metric("rougeLsum", "higher", "texts", "Rouge"),
    Metric("strict_match", "higher", "texts", "StrictMatch"),
    Metric("flexible_match", "higher", "texts", "FlexibleMatch"),
    # Of lm-evaluation-harness's tasks, under its names.
    Metric("acc", "higher"),
    Metric("acc_norm", "higher"),
    Metric("f1", "higher"),
    # Of text.
    Metric("loss", "lower", per_token=True),
    Metric("nll", "lower", per_token=True),
    Metric("perplexity", "lower", per_token=True),
    Metric("token_perplexity", "lower", per_token=True),
    Metric("word_perplexity", "lower"),
    Metric("byte_perplexity", "lower"),
    Metric("bits_per_byte", "lower"),
    # Of preferences and policies.
    Metric("reward", "higher"),
    Metric("margin", "higher"),
    Metric("win_rate", "higher"),
    Metric("teacher_kl_estimate", "lower", per_token=True),
    Metric("win_rate_over_sft", "higher"),
    Metric("win_rate_over_base", "higher"),
    # Of verifiers and of what they choose.
    Metric("roc_auc", "higher"),
    Metric("brier", "lower"),
    Metric("ece", "lower"),
    Metric("em", "higher"),
    Metric("gain", "higher"),
    Metric("pass_at_k", "higher"),
    Metric("solved", "higher"),
    # Of error analyses.
    Metric("errors", "lower"),
    Metric("error_share", "lower"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def register(*metrics: Metric) -> None:
    """Make metrics of a plug-in known, where it is imported.

    Raises:
        ValueError: another one has the name.
    """
    for metric in metrics:
        if METRICS.setdefault(metric.name, metric) != metric:
            raise ValueError(f"{metric.name}: there is a metric of this name already. Choose another one.")


def find(name: str) -> Metric | None:
    """The entry behind a name in a result: `loss` of `validation_loss`, `pass_at_k` of `pass_at_8`. None for counts,
    times, and everything about the training itself, which is no result."""
    if name.startswith("train"):
        return None
    plain = re.sub(r"(^|_)pass_at_\d+$", r"\1pass_at_k", name)
    plain = re.sub(r"(^|_)reward/.*$", r"\1reward", plain)  # a part of a sum
    words = re.split(r"[_/]", plain)
    rests = ("_".join(words[i:]) for i in range(len(words)))
    return next((METRICS[rest] for rest in rests if rest in METRICS), None)


def direction(name: str) -> Direction | None:
    """Which way a figure is better; None where it is no metric."""
    metric = find(name)
    return metric.better if metric is not None else None


def per_token(name: str) -> bool:
    """Whether a figure is an average over tokens, and so depends on the tokenizer."""
    metric = find(name)
    return metric is not None and metric.per_token


def directions(names: Sequence[str]) -> dict[str, Direction]:
    """Name -> which way it is better, as an evaluation during training tells the loop.

    Raises:
        KeyError: one has no entry here.
    """
    found = {name: direction(name) for name in names}
    unknown = [name for name, way in found.items() if way is None]
    if unknown:
        raise KeyError(f"{unknown[0]} has no entry in evaluation/metrics/registry.py")
    return {name: way for name, way in found.items() if way is not None}


def choosable(answers: Answers) -> list[str]:
    """Names that `task.data.metrics` may hold for answers of a kind."""
    return [metric.name for metric in METRICS.values() if metric.scores(answers)]
