"""A trained reward model at work: of held-out pairs, and of answers to problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from modern_llm.data.batches import by_length
from modern_llm.data.chat import ChatWriter, Message, with_system
from modern_llm.data.preferences.read import EncodedPair, RewardBatch
from modern_llm.evaluation.answering import text_logits
from modern_llm.evaluation.likelihood import silent
from modern_llm.evaluation.pairs import with_intervals
from modern_llm.objectives.base import on_device
from modern_llm.objectives.classification import TextClassifier
from modern_llm.objectives.preference import reward_measures
from modern_llm.objectives.reward import BradleyTerry, BranchingClassifier, answer_rewards

if TYPE_CHECKING:
    from modern_llm.training.runtime import Runtime


@torch.no_grad()
def pair_rewards(
    model: BranchingClassifier, pairs: Sequence[EncodedPair], batch_size: int, device: torch.device
) -> np.ndarray:
    """(N, 2) float64 rewards of the chosen and the rejected answers; arguments as in `pair_log_probs`."""
    found, collate = np.zeros((len(pairs), 2)), RewardBatch(0)
    for places in by_length(pairs, batch_size):
        batch = on_device(collate([pairs[i] for i in places]), device)
        found[places] = answer_rewards(model, batch).cpu().double().numpy()
    return found


def score_rewards(objective: BradleyTerry, rewards: np.ndarray, seed: int) -> dict[str, float]:
    """What a reward model makes of held-out pairs: `loss` and what `BradleyTerry` logs, means over the pairs;
    `preference_accuracy` and `reward_margin` with the bounds of their 95 % bootstrap intervals.

    Args:
        objective: its loss.
        rewards: (N, 2).
        seed: of the intervals.
    """
    chosen, rejected = torch.from_numpy(rewards).unbind(1)
    values = {"loss": objective.losses(chosen, rejected), **reward_measures(chosen, rejected)}
    return with_intervals(values, seed)


@dataclass
class AnswerRewards:
    """Scores answers to problems, each as a turn of the assistant behind one of the user.

    Attributes:
        model: with a scalar head, in evaluation mode.
        writer: of the model's chat template.
        runtime: the machine.
        max_tokens: longest text; of longer ones the beginning is left out.
        system: what a system turn says; empty: there is none.
        truncated: texts so far that had to be shortened.
    """

    model: TextClassifier
    writer: ChatWriter
    runtime: Runtime
    max_tokens: int
    system: str = ""
    truncated: int = field(default=0, init=False)

    def score(
        self,
        problems: Sequence[str],
        answers: Sequence[str],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """(N,) rewards; -inf of an empty answer.

        Args:
            problems, answers: texts, one problem for each answer.
            batch_size: texts per forward pass.
            progress: called with how many are done, of how many.
        """
        return self.score_conversations([[_asked(problem)] for problem in problems], answers, batch_size, progress)

    def score_conversations(
        self,
        conversations: Sequence[Sequence[Message]],
        answers: Sequence[str],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> np.ndarray:
        """The same of answers to conversations, each of which ends in a turn of the user."""
        rewards = np.full(len(answers), -np.inf)
        there = [i for i, answer in enumerate(answers) if answer.strip()]
        if not there:
            return rewards
        turns = [[*conversations[i], {"role": "assistant", "content": answers[i].strip()}] for i in there]
        written = self.writer.encode([with_system(self.system, whole) for whole in turns], there)
        self.truncated += sum(len(text.ids) > self.max_tokens for text in written)
        texts = [text.ids[-self.max_tokens :] for text in written]
        with self.runtime.autocast():
            found = text_logits(self.model, texts, batch_size, self.runtime.device, progress or silent)
        rewards[there] = found[:, 0].double().numpy()
        return rewards

    def weights(self, rewards: np.ndarray) -> np.ndarray:
        """(P, n) of the rewards of n answers to each of P problems: exp(r) over its sum, how likely each is to be
        preferred to the n - 1 others (Luce 1959); 0 where none has a reward."""
        best = rewards.max(1, keepdims=True)
        strengths = np.exp(rewards - np.where(np.isfinite(best), best, 0.0))
        return strengths / np.maximum(strengths.sum(1, keepdims=True), 1.0)

    def probabilities(self, rewards: np.ndarray) -> np.ndarray:
        """(N,) of the rewards r of N answers: 1 / (1 + exp(-r)), how likely each is to be preferred to an answer with
        reward 0 (Bradley and Terry 1952)."""
        return np.exp(-np.logaddexp(0.0, -rewards))


def _asked(problem: str) -> Message:
    return {"role": "user", "content": problem.strip()}
