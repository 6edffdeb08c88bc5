"""A trained verifier at work: how likely is it that an answer is right?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from modern_llm.data.chat import Message
from modern_llm.data.solutions.read import SolutionWriter
from modern_llm.evaluation.answering import classify
from modern_llm.evaluation.metrics.calibration import Calibration
from modern_llm.objectives.classification import TextClassifier

if TYPE_CHECKING:
    from modern_llm.training.runtime import Runtime


@dataclass(frozen=True)
class AnswerVerifier:
    """Scores answers.

    Attributes:
        model: gives logits of the classes wrong and right; in evaluation mode.
        writer: turns problem and answer into ids.
        runtime: the machine.
        calibration: from log-odds to probabilities.
        threshold: probability from which an answer counts as right.
        known: `problem_id` of every problem that it was trained or calibrated on, whose scores would flatter.
    """

    model: TextClassifier
    writer: SolutionWriter
    runtime: Runtime
    calibration: Calibration
    threshold: float
    known: frozenset[str]

    @property
    def truncated(self) -> int:
        """Texts so far that had to be shortened."""
        return self.writer.truncated

    def weights(self, probabilities: np.ndarray) -> np.ndarray:
        """(P, n) weights of the votes of n answers to each of P problems: their probabilities."""
        return probabilities

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """(N,) of the scores of N answers: a verifier's are probabilities."""
        return scores

    def facts(self) -> dict[str, Any]:
        """All of it but the model, as JSON."""
        return {
            "calibration": asdict(self.calibration),
            "threshold": self.threshold,
            "text": asdict(self.writer.text),
            "max_tokens": self.writer.max_tokens,
            "known_problems": sorted(self.known),
        }

    def score(
        self,
        problems: Sequence[str],
        answers: Sequence[str],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """(N,) probabilities that each answer is right; an empty answer is wrong for sure.

        Where a text is too long, the beginning of the problem is left out.

        Args:
            problems, answers: texts, one problem for each answer.
            batch_size: texts per forward pass.
            progress: called with how many are done, of how many.
        """
        probabilities = np.zeros(len(answers))
        there = [i for i, answer in enumerate(answers) if answer.strip()]
        if there:
            ids = self.writer.ids([problems[i] for i in there], [answers[i] for i in there])
            texts = [self.writer.shortened(row) for row in ids]
            scores = log_odds(self.model, texts, batch_size, self.runtime, progress)
            probabilities[there] = self.calibration(scores)
        return probabilities

    def score_conversations(
        self,
        conversations: Sequence[Sequence[Message]],
        answers: Sequence[str],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The same of answers to conversations, whose last turn, the user's, is the problem."""
        return self.score([turns[-1]["content"] for turns in conversations], answers, batch_size, progress)


def log_odds(
    model: TextClassifier,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    runtime: Runtime,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """(N,) log p(right) - log p(wrong) of texts given as ids, before any calibration."""
    told = (progress,) if progress is not None else ()
    with runtime.autocast():
        wrong, right = classify(model, texts, batch_size, runtime.device, *told).T
    return right - wrong
