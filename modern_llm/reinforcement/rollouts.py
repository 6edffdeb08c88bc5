"""The stream of learning from rewards: each batch is drawn from the policy as it is."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from modern_llm.objectives.base import Batch
from modern_llm.objectives.policy_losses import PolicyLoss
from modern_llm.processes import agreed, gathered, world
from modern_llm.reinforcement.groups import (
    Asked,
    Drawer,
    Group,
    GroupFile,
    as_row,
    fact_names,
    facts_of,
    group_batch,
    of_row,
)
from modern_llm.reinforcement.rewards import part_names
from modern_llm.reinforcement.settings import Drawing
from modern_llm.training.runtime import give_back_freed_memory

LogProbs = Callable[[Batch], torch.Tensor]
_SECONDS = ("draw_seconds", "mark_seconds")
_KEPT_DRAWS = 2  # checkpoints back, whose draws stay on disk
_LITTLE_ENTROPY = 0.05  # of what it was in the first draw
_MOSTLY_CUT_OFF = 0.95


class RolloutStream:
    """Endless batches of answers that the policy draws and a reward marks.

    An epoch asks every problem once, in an order of the seed. What was drawn is written to a file a draw at once, and
    read from there when a run is taken up again.

    Args:
        drawer: draws and marks.
        asked: the problems.
        loss: whose advantages and whose divisor.
        drawing: how many answers, and what becomes of unanimous ones.
        batch_size: problems per step.
        seed: of the order.
        folder: that draws are kept in.
        fingerprint: of problems, reward, teacher and settings, to tell on a resume that they are the same.
        old: gives the policy's log-probabilities of a batch (B, G, K); called where answers are used more than once.
        reference, teacher: the same of the reference and of the teacher; None: the loss needs none.
    """

    def __init__(
        self,
        drawer: Drawer,
        asked: Sequence[Asked],
        loss: PolicyLoss,
        drawing: Drawing,
        batch_size: int,
        seed: int,
        folder: Path,
        fingerprint: str,
        old: LogProbs,
        reference: LogProbs | None = None,
        teacher: LogProbs | None = None,
    ) -> None:
        self.drawer, self.asked, self.loss, self.drawing = drawer, asked, loss, drawing
        self.batch_size, self.seed, self.folder, self.fingerprint = batch_size, seed, folder, fingerprint
        self.old, self.reference, self.teacher = old, reference, teacher
        self.turn = self.taken = self.uses = self.fruitless = self.unanimous = self.groups = 0
        self.held: Batch = {}
        self.first_entropy: float | None = None
        self._saved: list[int] = []
        self._warned: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """What is logged of each draw."""
        return (*fact_names(self.drawing.samples, part_names(self.drawer.marker)), *_SECONDS)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self.held:
            give_back_freed_memory()  # of the update before
            self.held, self.uses = self._drawn(), 0
            give_back_freed_memory()  # of the drawing
        batch, self.uses = self.held, self.uses + 1
        if self.uses >= self.drawing.updates:
            self.held = {}
        return batch

    # -- one step's answers -----------------------------------------------------------------------------------------

    def _drawn(self) -> Batch:
        """A batch from which something can be learned.

        Raises:
            ValueError: none came in `drawing.patience` draws in a row.
        """
        while True:
            groups, facts = self._groups()
            self.groups += len(groups)
            self.unanimous += sum(group.unanimous for group in groups)
            advantages = [self.loss.advantages(group.rewards) for group in groups]
            useful = [self.loss.teaches(values) for values in advantages]
            if any(useful):
                self.fruitless = 0
                return self._batch(groups, advantages, useful, facts)
            self.fruitless += 1
            if self.fruitless >= self.drawing.patience:
                raise ValueError(
                    f"{self.fruitless} draws in a row ({self.fruitless * len(groups)} problems) gave nothing to learn "
                    f"from: all answers to a problem had the same reward, in the last draw "
                    f"{groups[-1].rewards[0]:g}. Choose problems that are solved sometimes (task.data), a reward with "
                    "more steps (task.reward) or more answers (task.drawing.samples), or train the policy on such "
                    "answers first (task=sft)."
                )

    def _groups(self) -> tuple[list[Group], dict[str, float]]:
        """The groups of one step, with `replace` those that were drawn for unanimous ones too, and what is logged."""
        turn, self.turn = self.turn, self.turn + 1
        file = GroupFile(self.folder / f"{turn:08d}.jsonl")
        seconds = dict.fromkeys(_SECONDS, 0.0)
        found: list[Group] = []
        rounds = self.drawing.most_rounds if self.drawing.unanimous == "replace" else 1
        missing = self.batch_size
        for _ in range(rounds):
            found += self._answered(self._next_problems(missing), len(found), turn, file, seconds)
            missing = self.batch_size - sum(self.loss.teaches(self.loss.advantages(group.rewards)) for group in found)
            if missing <= 0:
                break
        facts = facts_of(found)
        self._tell_collapse(facts)
        return found, facts | seconds

    def _next_problems(self, count: int) -> list[Asked]:
        chosen = []
        for _ in range(count):
            epoch, place = divmod(self.taken, len(self.asked))
            chosen.append(self.asked[self._order(epoch)[place]])
            self.taken += 1
        return chosen

    def _order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(len(self.asked))

    def _answered(
        self, asked: Sequence[Asked], first: int, turn: int, file: GroupFile, seconds: dict[str, float]
    ) -> list[Group]:
        """Answers to problems, whose places in the draw begin with `first`: each process draws some of the
        parts. One that is not whole on disk is drawn again, so that it comes out as it would have."""
        rows: list[dict[str, Any]] = []
        parts = self.drawer.parts(len(asked), world().count)
        missing = [places for places in parts if any(first + p not in file.found for p in places)]
        for number, places in enumerate(missing):
            if number % world().count != world().rank:
                continue
            start = time.perf_counter()
            groups = self.drawer.draw([asked[place] for place in places], turn)
            middle = time.perf_counter()
            groups = self.drawer.marked(groups)
            seconds["draw_seconds"] += middle - start
            seconds["mark_seconds"] += time.perf_counter() - middle
            drawn = [as_row(group, first + place) for place, group in zip(places, groups, strict=True)]
            if world().count == 1:
                file.add(drawn)
            rows += drawn
        if world().count > 1:
            rows = [row for part in gathered(rows) for row in part]
            seconds |= agreed(lambda: seconds)
            if world().is_first:
                file.add(rows)
        known = file.found | {row["place"]: row for row in rows}
        return [of_row(known[first + place], one) for place, one in enumerate(asked)]

    def _batch(
        self,
        groups: Sequence[Group],
        advantages: Sequence[Sequence[float]],
        useful: Sequence[bool],
        facts: dict[str, float],
    ) -> Batch:
        # Where nothing pulls towards a reference, a group without advantages has no gradient: it is counted alone.
        counts = [self.drawing.unanimous == "keep" or one for one in useful]
        read = [one or (counted and self.loss.needs_reference) for one, counted in zip(useful, counts, strict=True)]
        chosen = [place for place, one in enumerate(read) if one]
        batch = group_batch(
            [groups[place] for place in chosen],
            [advantages[place] for place in chosen],
            self.drawer.loaded.tokenizer.eos_id,
        )
        longest = self.drawer.max_new_tokens
        targets = [self.loss.targets([len(ids) for ids in group.answers], longest) for group in groups]
        counted = [targets[place] if counts[place] else 0 for place in chosen]
        counted[0] += sum(targets[p] for p in range(len(groups)) if counts[p] and not read[p])
        batch["counted"] = torch.tensor(counted)
        batch["facts"] = torch.tensor([[*facts.values()]] * len(chosen), dtype=torch.float64)
        if self.drawing.updates > 1:
            batch["old_log_probs"] = self.old(batch)
        if self.reference is not None:
            batch["reference_log_probs"] = self.reference(batch)
        if self.teacher is not None:
            batch["teacher_log_probs"] = self.teacher(batch)
        return batch

    def _tell_collapse(self, facts: dict[str, float]) -> None:
        """Say once what a policy that has collapsed looks like."""
        if self.first_entropy is None:
            self.first_entropy = facts["entropy"]
        signs = {
            f"the entropy of the policy has fallen to {facts['entropy']:.3g} nats a token, from "
            f"{self.first_entropy:.3g}: its answers hardly differ any more. Lower trainer.optimizer.lr, or raise "
            "task.policy_loss.beta.": facts["entropy"] < _LITTLE_ENTROPY * self.first_entropy,
            f"{facts['cut_off_share']:.0%} of the answers do not end within task.asking.max_new_tokens="
            f"{self.drawer.max_new_tokens}. Raise it, or put a reward on length into task.reward.":
                facts["cut_off_share"] > _MOSTLY_CUT_OFF,
        }  # fmt: skip
        for kind, (text, seen) in enumerate(signs.items()):
            if seen and str(kind) not in self._warned:
                self._warned.add(str(kind))
                warnings.warn(text, stacklevel=2)

    # -- its place --------------------------------------------------------------------------------------------------

    def facts(self) -> dict[str, float]:
        """Passes over the problems, and the share of problems all of whose answers had the same reward."""
        share = self.unanimous / self.groups if self.groups else 0.0
        return {"epochs": self.taken / len(self.asked), "draws": float(self.turn), "unanimous_share": share}

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands; a batch that is to be used again is part of it."""
        self._forget_old()
        names = ("turn", "taken", "uses", "fruitless", "unanimous", "groups", "first_entropy", "fingerprint", "held")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a stream with the same settings stood.

        Raises:
            ValueError: problems, reward, teacher or settings are others.
        """
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(
                "the problems, the reward, the teacher or how answers are drawn have changed since the checkpoint was "
                "written, so the run cannot be resumed exactly. Restore them, or start a new run."
            )
        for name, value in state.items():
            setattr(self, name, value)

    def _forget_old(self) -> None:
        """Let go of draws that no checkpoint which is kept comes before."""
        self._saved = [*self._saved[-_KEPT_DRAWS:], self.turn]
        if len(self._saved) > _KEPT_DRAWS and world().is_first:
            for path in self.folder.glob("*.jsonl"):
                if int(path.stem) < self._saved[0]:
                    path.unlink(missing_ok=True)
