"""Pairs of answers to one prompt, of which one is preferred: as rows of three texts, as Anthropic's dialogues, or as
lists of turns; through the chat template, the prompt once for both."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from modern_llm.data.batches import branched, padded, read_tokens
from modern_llm.data.chat import ChatWriter, Message, messages_of, with_system
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import Part, Row, Rows, content_fingerprint, draw_rows, gather_rows, require_columns
from modern_llm.data.solutions.settings import problem_id
from modern_llm.objectives.base import Batch

_SPEAKER = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """Ids of one pair.

    Attributes:
        index: of the row in its split.
        prompt_ids: what both answers continue; not empty.
        chosen_ids, rejected_ids: the answers, end of text included; not empty.
        reference: log-probabilities of the answers under the reference, in nats; None where they are not known.
        mismatched_ids: an answer to another prompt, or what of it fits behind this one; None: there is none.
    """

    index: int
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    reference: tuple[float, ...] | None = None
    mismatched_ids: list[int] | None = None

    @property
    def answers(self) -> tuple[list[int], ...]:
        """Chosen and rejected answer, and the mismatched one where there is one."""
        both = self.chosen_ids, self.rejected_ids
        return both if self.mismatched_ids is None else (*both, self.mismatched_ids)

    @property
    def length(self) -> int:
        """Tokens that are computed."""
        return read_tokens(self)

    @property
    def context(self) -> int:
        """Tokens of the longer of the two texts that the model reads."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids)) - 1


class Preferences(NamedTuple):
    """A part of the data as ids.

    Attributes:
        pairs: prompt and answers.
        skipped: reason -> how many were left out.
        split: where they are from.
        fingerprint: of rows, template and tokenizer.
        content: fingerprint of the rows that are left, whatever the model.
    """

    pairs: list[EncodedPair]
    skipped: dict[str, int]
    split: str
    fingerprint: str
    content: str


def dialogue_turns(text: str) -> list[Message]:
    """Turns of a dialogue as in Anthropic's HH data (Bai et al. 2022, arXiv 2204.05862), each behind "Human:" or
    "Assistant:" and an empty line. Turns in a row of one speaker are one turn: most chat templates know no others."""
    pieces = _SPEAKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    turns: list[Message] = []
    for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] = f"{turns[-1]['content']}\n\n{said.strip()}".strip()
        else:
            turns.append({"role": role, "content": said.strip()})
    return turns


def pair_of(data: PreferenceData, row: Row, index: int) -> tuple[list[Message], list[Message]] | str:
    """Both conversations of a row, alike up to the assistant's last turn; or why they cannot be learned from.

    Raises:
        ValueError: as in `messages_of`.
    """
    answers = row[data.chosen_column], row[data.rejected_column]
    if data.form == "texts":
        prompt = str(row[data.prompt_column] or "").strip()
        turns = [{"role": "user", "content": prompt}] if prompt else []
        chosen, rejected = ([*turns, {"role": "assistant", "content": str(a or "").strip()}] for a in answers)
    elif data.form == "dialogues":
        chosen, rejected = (dialogue_turns(str(answer or "")) for answer in answers)
    else:
        chosen, rejected = (messages_of(answer, index) for answer in answers)
    if any(not turns or turns[-1]["role"] != "assistant" or not turns[-1]["content"] for turns in (chosen, rejected)):
        return "an empty answer"
    if chosen[:-1] != rejected[:-1]:
        return "answers to different prompts"
    if not any(turn["role"] == "user" and turn["content"] for turn in chosen):
        return "no prompt"
    if chosen[-1]["content"] == rejected[-1]["content"]:
        return "chosen and rejected the same"
    return with_system(data.system, chosen), with_system(data.system, rejected)


def prompt_of(data: PreferenceData, row: Row, index: int) -> list[Message] | None:
    """What both answers follow; None of a row that cannot be learned from. Errors as in `pair_of`."""
    read = pair_of(data, row, index)
    return None if isinstance(read, str) else read[0][:-1]


def prompt_id(data: PreferenceData, row: Row, index: int) -> str | None:
    """`problem_id` of the prompt's last turn; the rest as in `prompt_of`."""
    prompt = prompt_of(data, row, index)
    return None if prompt is None else problem_id(prompt[-1]["content"])


def preference_rows(
    data: PreferenceData, part: Part, mirror: str | None, limit: int | None = None, seed: int = 0
) -> Rows:
    """As `RowSource.rows`; of the training part the rows of one fold alone, from which the sample is drawn. What cannot
    be learned from is in fold 0.

    Raises:
        ValueError: a column is missing, or no pair is in the fold.
    """
    if part != "train" or data.folds == 1:
        rows = data.source.rows(part, mirror, limit, seed)
        require_columns(data.source.name, rows, data.columns)
        return rows
    every = data.source.rows("train", mirror)
    require_columns(data.source.name, every, data.columns)
    identities = [prompt_id(data, row, index) for index, row in zip(every.indices, every.rows, strict=True)]
    own = [place for place, identity in enumerate(identities) if int(identity or "0", 16) % data.folds == data.fold]
    if not own:
        raise ValueError(
            f"task.data.fold={data.fold}: none of the {len(set(identities))} prompts of {data.source.name} is in this "
            f"one of {data.folds} folds. Lower task.data.folds, or use more data."
        )
    places = draw_rows(own, limit, seed)
    dealt = gather_rows(every.split, every.rows, places)
    return dealt._replace(indices=[every.indices[place] for place in places])


def prompt_ids(
    data: PreferenceData, parts: Sequence[Part], mirror: str | None, limits: Mapping[str, int | None], seed: int
) -> frozenset[str]:
    """`prompt_id` of every pair of these parts that can be learned from; `limits` of parts, the rest as in
    `preference_rows`."""
    found = set()
    for part in parts:
        rows = preference_rows(data, part, mirror, limits.get(part), seed)
        found |= {prompt_id(data, row, index) for index, row in zip(rows.indices, rows.rows, strict=True)}
    return frozenset(identity for identity in found if identity is not None)


def read_preferences(
    data: PreferenceData,
    writer: ChatWriter,
    part: Part,
    max_tokens: int,
    mirror: str | None,
    limit: int | None = None,
    seed: int = 0,
) -> Preferences:
    """Pairs of a part as ids. What cannot be learned from is left out, and counted by its reason.

    Args:
        data: where they are, and how they are read.
        writer: of the model's chat template.
        part, mirror, limit, seed: as in `preference_rows`.
        max_tokens: longest prompt with an answer.

    Raises:
        ValueError: a template that drops turns; nothing is left.
    """
    rows = preference_rows(data, part, mirror, limit, seed)
    skipped: Counter[str] = Counter()
    kept = []
    for index, row in zip(rows.indices, rows.rows, strict=True):
        read = pair_of(data, row, index)
        if isinstance(read, str):
            skipped[read] += 1
        else:
            kept.append((index, *read))
    indices = [index for index, _, _ in kept]
    written = writer.encode([c for _, c, _ in kept] + [r for _, _, r in kept], indices + indices)
    pairs = []
    for chosen, rejected in zip(written[: len(kept)], written[len(kept) :], strict=True):
        start = chosen.answer_start
        pair = EncodedPair(chosen.index, chosen.ids[:start], chosen.ids[start:], rejected.ids[rejected.answer_start :])
        if len(pair.prompt_ids) >= max_tokens:
            skipped[f"a prompt that fills the {max_tokens} tokens"] += 1
        elif pair.context > max_tokens:
            skipped[f"longer than {max_tokens} tokens"] += 1
        elif pair.chosen_ids == pair.rejected_ids:
            skipped["chosen and rejected the same"] += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise ValueError(
            f"{data.source.name}, split {rows.split!r}: none of {len(rows.rows)} pairs can be learned from "
            f"({dict(skipped)}). Raise task.max_tokens, or check task.data."
        )
    settings = [rows.fingerprint, repr(data), writer.template, writer.tokenizer.fingerprint, max_tokens]
    content = content_fingerprint([rows.fingerprint, [item.index for item in pairs]])
    return Preferences(pairs, dict(skipped), rows.split, content_fingerprint(settings), content)


def with_mismatched(pairs: Sequence[EncodedPair], max_tokens: int, seed: int) -> list[EncodedPair]:
    """The pairs, each with an answer to another prompt: what KTO's reference point is estimated on.

    Each pair stands on a circle in an order that the seed draws, and takes its answer, chosen or rejected by a toss,
    from the next one on it that has another prompt. So it has the same answer in every epoch and in every process, and
    the reference's log-probabilities of it are computed once.

    Args:
        pairs: of one part of the data.
        max_tokens: longest prompt with an answer; what goes beyond is cut off.
        seed: of the draw.

    Raises:
        ValueError: all pairs have one prompt.
    """
    if all(pair.prompt_ids == pairs[0].prompt_ids for pair in pairs):
        raise ValueError(
            f"task.loss: KTO compares with answers to other prompts, and the {len(pairs)} pairs of a part of the data "
            "have one prompt alone. Use more data (task.data), or another loss."
        )
    random = np.random.Generator(np.random.Philox(key=[seed, len(pairs)]))
    order, tosses = random.permutation(len(pairs)).tolist(), random.integers(2, size=len(pairs)).tolist()
    found = list(pairs)
    for place, i in enumerate(order):
        pair = pairs[i]
        around = (pairs[order[(place + step) % len(pairs)]] for step in range(1, len(pairs)))
        other = next(each for each in around if each.prompt_ids != pair.prompt_ids)
        room = max_tokens + 1 - len(pair.prompt_ids)  # the last token of an answer is not read
        found[i] = replace(pair, mismatched_ids=other.answers[tosses[i]][:room])
    return found


class PairBatch:
    """Prompt and answers of a pair in one row, the answers as branches behind their shared prompt.

    Args:
        fill_id: at padding.

    Returns (when called):
        As `branched`: the chosen answers, the rejected ones and, where there are any, mismatched ones; where they are
        known, `reference_log_probs` (B, A) in float64.
    """

    def __init__(self, fill_id: int) -> None:
        self.fill_id = fill_id

    def __call__(self, items: Sequence[EncodedPair]) -> Batch:
        batch = branched(items, self.fill_id)
        known = [pair.reference for pair in items if pair.reference is not None]
        if len(known) == len(items):
            batch["reference_log_probs"] = torch.tensor(known, dtype=torch.float64)
        return batch


class RewardBatch:
    """As `PairBatch`, with whole answers: their rewards are read at their last tokens.

    Args:
        fill_id: at padding.

    Returns (when called):
        `input_ids`, `branch_ids` (B, T), 0 in the prompt, 1 in the chosen and 2 in the rejected answer; `last` (B, 2),
        where the answers end; `lengths`, `sequence_ids` (B,).
    """

    def __init__(self, fill_id: int) -> None:
        self.fill_id = fill_id

    def __call__(self, items: Sequence[EncodedPair]) -> Batch:
        input_ids = padded([[*p.prompt_ids, *p.chosen_ids, *p.rejected_ids] for p in items], self.fill_id)
        parts = torch.tensor([[len(p.prompt_ids), len(p.chosen_ids), len(p.rejected_ids)] for p in items])
        ends = parts.cumsum(1)  # (B, 3)
        place = torch.arange(input_ids.shape[1])  # (T,)
        branch_ids = (place >= ends[:, :, None]).sum(1)  # 3 at padding
        return {
            "input_ids": input_ids,
            "branch_ids": torch.where(branch_ids == 3, place + 3, branch_ids),  # every padding a branch of its own
            "last": ends[:, 1:] - 1,
            "lengths": ends[:, 2],
            "sequence_ids": torch.tensor([pair.index for pair in items]),
        }
