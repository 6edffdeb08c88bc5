"""The teacher of on-policy distillation: a frozen model that says how likely it would have written what the policy
wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.experiment.contract import say
from modern_llm.experiment.loading import load_decoder
from modern_llm.models.fused_loss import IGNORE_INDEX
from modern_llm.objectives.base import Batch
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.settings import PretrainedChoice
from modern_llm.reinforcement.groups import Group, group_batch
from modern_llm.training.runtime import Runtime


def load_teacher(
    choice: PretrainedChoice, runtime: Runtime, mirror: str | None, policy: LoadedModel, chat: bool
) -> LoadedModel:
    """A decoder with the policy's tokens, frozen and in evaluation mode.

    Args:
        choice, runtime, mirror: as `load_model` takes them.
        policy: who is taught.
        chat: problems are asked through the policy's chat template.

    Raises:
        ValueError: an encoder-decoder, or another tokenizer.
    """
    teacher = load_decoder(choice, runtime, mirror, train=False, key="task.teacher")
    differs = _difference(teacher.tokenizer, policy.tokenizer)
    if differs is not None:
        raise ValueError(
            f"task.teacher={teacher.name}: has another tokenizer than the policy: {differs}. Probabilities are "
            "compared token by token, so choose a teacher with the policy's tokenizer, or a policy (model) with the "
            "teacher's."
        )
    teacher.model.requires_grad_(False).eval()
    say(f"teacher: {teacher.name}, {teacher.parameter_counts()[0] / 1e6:.1f}M parameters")
    if chat and teacher.tokenizer.chat_template not in (None, policy.tokenizer.chat_template):
        say("the teacher's chat template is another one than the policy's, by which it is asked")
    return teacher


def teacher_divergences(groups: Sequence[Group], log_probs: Callable[[Batch], Tensor], fill_id: int) -> list[float]:
    """Of each group an estimate of KL(policy || teacher) in nats per token, the mean over its answers.

    Args:
        groups: drawn from the policy, unfiltered.
        log_probs: gives the teacher's log-probabilities (B, G, K) of a batch.
        fill_id: at padding.
    """
    batch = group_batch(groups, [[0.0] * len(group.drawn) for group in groups], fill_id)
    real = batch["labels"] != IGNORE_INDEX
    apart = (batch["drawn_log_probs"] - log_probs(batch)) * real
    return (apart.sum(-1) / real.sum(-1)).mean(-1).tolist()


def _difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """Where ids mean different texts, in words."""
    known = [{i: text for text, i in t.backend.get_vocab(with_added_tokens=True).items()} for t in (one, other)]
    for token in sorted(known[0].keys() | known[1].keys()):
        there, here = (vocabulary.get(token) for vocabulary in known)
        if there != here:
            return f"id {token} is {there!r} there and {here!r} here"
    if one.eos_id != other.eos_id:
        return f"a text ends with {one.token(one.eos_id)!r} there and with {other.token(other.eos_id)!r} here"
    return None
