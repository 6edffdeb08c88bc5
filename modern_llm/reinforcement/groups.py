"""Groups of answers to one problem: drawn, marked, kept on disk, and made a batch of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modern_llm.data.batches import branched
from modern_llm.data.solutions.problems import Problem
from modern_llm.evaluation.metrics.numbers import same_number
from modern_llm.evaluation.reranking import READINGS, pass_at_k
from modern_llm.models.decoding.drawing import Drawn, draw
from modern_llm.models.decoding.generation import Continuation
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.objectives.base import Batch
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.reinforcement.rewards import Marker, marks_with_parts
from modern_llm.training.runtime import Runtime

_SEEDS = 2**63
_TURNS = 4  # times the rows are drawn in one go: what is idle behind the longest answers is a small share then


@dataclass(frozen=True)
class Asked:
    """A problem as the policy reads it.

    Attributes:
        problem: the problem.
        prompt_ids: of it; not empty.
        reference: its number.
    """

    problem: Problem
    prompt_ids: list[int]
    reference: str


@dataclass(frozen=True)
class Group:
    """The answers to one problem.

    Attributes:
        asked: the problem.
        drawn: G answers.
        rewards: of each.
        parts: of a reward that is a sum, the name that a part is logged under, and what it gives to each answer before
            it is weighed.
    """

    asked: Asked
    drawn: list[Drawn]
    rewards: list[float]
    parts: dict[str, list[float]] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Number of the problem."""
        return self.asked.problem.index

    @property
    def prompt_ids(self) -> list[int]:
        """What all answers continue."""
        return self.asked.prompt_ids

    @property
    def answers(self) -> list[list[int]]:
        """Ids of each answer."""
        return [one.ids for one in self.drawn]

    @property
    def unanimous(self) -> bool:
        """Whether all rewards are the same."""
        return max(self.rewards) == min(self.rewards)

    def right(self, reading: str) -> list[bool]:
        """Whether each answer comes to the problem's number."""
        read = READINGS[reading]
        return [same_number(read(one.text), self.asked.reference) for one in self.drawn]


class GroupFile:
    """Groups of one draw as they come, one JSON object a line, so that none is drawn twice.

    Args:
        path: of the file; a last line that was not written to its end is drawn again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: dict[int, dict[str, Any]] = {}
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        for line in whole.splitlines():
            row = json.loads(line)
            self.found[row["place"]] = row
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append groups, each with its `place` in the draw."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


@dataclass(frozen=True)
class Drawer:
    """Draws and marks answers.

    Args:
        loaded: the policy.
        runtime: the machine.
        marker: gives rewards.
        samples: answers G to each problem.
        max_new_tokens, sampling, stop: as `draw` takes them.
        seed: of the draws.
        rows: answers that are written side by side, at most.
    """

    loaded: LoadedModel
    runtime: Runtime
    marker: Marker
    samples: int
    max_new_tokens: int
    sampling: Sampling
    stop: Sequence[str]
    seed: int
    rows: int

    def parts(self, count: int, processes: int = 1) -> Iterator[range]:
        """Places of so many problems that are drawn in one go, such that each process has some and a run that is killed
        loses few."""
        few = _TURNS * self.rows // self.samples
        size = max(min(few, -(-count // processes)), 1)
        return (range(start, min(start + size, count)) for start in range(0, count, size))

    def draw(self, asked: Sequence[Asked], turn: int) -> list[Group]:
        """Answers to problems, `rows` at once: others take the place of those that have ended. They depend on the seed,
        the turn, the problems and, by rounding alone, on what is drawn beside them."""
        seeds = [
            int(np.random.SeedSequence([self.seed, turn, one.problem.index, sample]).generate_state(1, np.uint64)[0])
            % _SEEDS
            for one in asked
            for sample in range(self.samples)
        ]
        with self.runtime.autocast(), self.loaded.decoding():
            drawn = draw(
                self.loaded.decoder,
                self.loaded.tokenizer,
                [one.prompt_ids for one in asked],
                self.samples,
                self.rows,
                max_new_tokens=self.max_new_tokens,
                sampling=self.sampling,
                stop=self.stop,
                seeds=seeds,
            )
        return [Group(one, answers, []) for one, answers in zip(asked, drawn, strict=True)]

    def marked(self, groups: Sequence[Group]) -> list[Group]:
        """The same with rewards."""
        problems = [group.asked.problem for group in groups for _ in group.drawn]
        answers = [Continuation(one.text, one.ended) for group in groups for one in group.drawn]
        with torch.no_grad(), self.runtime.autocast():
            marks, parts = marks_with_parts(self.marker, problems, answers)
        found, start = [], 0
        for group in groups:
            own = slice(start, start := start + len(group.drawn))
            found.append(Group(group.asked, group.drawn, marks[own], {name: part[own] for name, part in parts.items()}))
        return found


def as_row(group: Group, place: int) -> dict[str, Any]:
    """A group as JSON."""
    names = [one.name for one in fields(Drawn)]  # not `asdict`, which copies number by number
    answers = [
        {name: getattr(one, name) for name in names} | {"reward": reward}
        for one, reward in zip(group.drawn, group.rewards, strict=True)
    ]
    question, parts = group.asked.problem.question, {"parts": group.parts} if group.parts else {}
    return {"place": place, "problem": group.index, "question": question, "answers": answers, **parts}


def of_row(row: dict[str, Any], asked: Asked) -> Group:
    """What `as_row` wrote."""
    answers = [dict(answer) for answer in row["answers"]]
    rewards = [answer.pop("reward") for answer in answers]
    return Group(asked, [Drawn(**answer) for answer in answers], rewards, row.get("parts", {}))


def fact_names(samples: int, parts: Sequence[str]) -> tuple[str, ...]:
    """Names of what `facts_of` gives for groups of so many answers, whose reward has these parts."""
    first = ("reward", *parts, "pass_at_1", f"pass_at_{samples}", "flexible_pass_at_1")
    return (*first, "unanimous_share", "entropy", "answer_tokens", "cut_off_share")


def facts_of(groups: Sequence[Group]) -> dict[str, float]:
    """What is logged of a draw: means over its answers, or over its problems."""
    every = [one for group in groups for one in group.drawn]
    tokens = sum(len(one.ids) for one in every)
    strict, flexible = ([group.right(reading) for group in groups] for reading in ("strict", "flexible"))
    G, parts = len(groups[0].drawn), tuple(groups[0].parts)

    def mean(values: Sequence[Sequence[bool]]) -> float:
        return sum(map(sum, values)) / (len(values) * G)

    values = (
        math.fsum(reward for group in groups for reward in group.rewards) / len(every),
        *(math.fsum(mark for group in groups for mark in group.parts[name]) / len(every) for name in parts),
        mean(strict),
        sum(pass_at_k(G, sum(right), G) for right in strict) / len(strict),
        mean(flexible),
        sum(group.unanimous for group in groups) / len(groups),
        math.fsum(e for one in every for e in one.entropies) / tokens,
        tokens / len(every),
        sum(not one.ended for one in every) / len(every),
    )
    return dict(zip(fact_names(G, parts), values, strict=True))


def group_batch(groups: Sequence[Group], advantages: Sequence[Sequence[float]], fill_id: int) -> Batch:
    """B groups as the rows of a batch: what `branched` gives, `advantages` (B, G) and `drawn_log_probs` (B, G, K)."""
    batch = branched(groups, fill_id)
    batch["advantages"] = torch.tensor(advantages, dtype=torch.float64)
    batch["drawn_log_probs"] = torch.zeros(batch["labels"].shape, dtype=torch.float32)
    for row, group in enumerate(groups):
        for place, one in enumerate(group.drawn):
            batch["drawn_log_probs"][row, place, : len(one.log_probs)] = torch.tensor(one.log_probs)
    return batch


def token_log_probs(
    loaded: LoadedModel, runtime: Runtime, batch: Batch, rows: int, within: Callable[[], Any] = nullcontext
) -> Tensor:
    """(B, G, K) log-probabilities of a model for the answers of a batch, in evaluation mode.

    Args:
        rows: that are computed at a time.
        within: a context in which the model is another one, such as the one without adapters.
    """
    from modern_llm.objectives.base import on_device
    from modern_llm.objectives.preference import answer_token_log_probs

    model, found = loaded.decoder, []
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), runtime.autocast(), within():
            for first in range(0, len(batch["input_ids"]), rows):
                names = ("input_ids", "branch_ids", "target_positions", "labels", "answer_lengths", "branch_lengths")
                part = on_device({name: batch[name][first : first + rows] for name in names}, runtime.device)
                found.append(answer_token_log_probs(model, part)[0].cpu())
    finally:
        model.train(was_training)
    return torch.cat(found)
