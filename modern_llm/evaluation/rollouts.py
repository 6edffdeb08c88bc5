"""Many answers to each problem: its prompt is computed once, and what was sampled is never sampled again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modern_llm.checks import require
from modern_llm.data.solutions.settings import MOST_SAMPLES
from modern_llm.files import write_text
from modern_llm.models.decoding.continuous import takes_waiting
from modern_llm.models.decoding.drawing import continue_owned
from modern_llm.models.decoding.generation import CausalLM, Continuation, TextCodec
from modern_llm.models.decoding.sampling import GREEDY, Sampling

GREEDY_SAMPLE = -1  # stands for the greedy answer among the numbers of samples


@dataclass(frozen=True, slots=True)
class Attempts:
    """What a model wrote for one problem.

    Attributes:
        greedy: its most likely answer, or None where none was asked for.
        samples: n answers drawn.
    """

    greedy: Continuation | None
    samples: list[Continuation]


class AttemptFile:
    """Answers as they come, one JSON object a line, from which an interrupted run goes on.

    Args:
        path: of the file; a last line that was not written to its end is dropped.
        settings: all that decides what is sampled, for a run that goes on with others is refused.

    Raises:
        ValueError: a line is no answer, or was sampled with other settings.
    """

    def __init__(self, path: Path, settings: Any) -> None:
        self.path = path
        self.key = hashlib.sha256(repr(settings).encode()).hexdigest()[:12]
        self.found: dict[tuple[int, int], Continuation] = {}
        whole = 0
        content = path.read_bytes() if path.is_file() else b""
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            place, written, key = _answer(path, number, line)
            if key != self.key:
                raise ValueError(
                    f"{path}: was sampled from another model or with other settings. Move it away, or start a new run."
                )
            self.found[place] = written
        if whole < len(content):
            with path.open("r+b") as file:
                file.truncate(whole)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Append answers: `problem`, `sample`, `text`, `ended`, and whatever else is worth reading."""
        with self.path.open("a", encoding="utf-8") as file:
            for row in rows:
                file.write(json.dumps({**row, "settings": self.key}) + "\n")
        for row in rows:
            self.found[row["problem"], row["sample"]] = Continuation(row["text"], row["ended"])

    def arrange(self) -> None:
        """Put the lines into the order of problems and samples, so that a file does not tell how often a run was cut
        off."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.is_file() else []
        ordered = sorted(lines, key=lambda line: _answer(self.path, 0, line)[0])
        if ordered != lines:
            write_text(self.path, b"".join(ordered).decode())

    def missing(self, problem: int, n: int, greedy: bool) -> list[int]:
        """Numbers of the samples of a problem that are still to be drawn."""
        wanted = [*([GREEDY_SAMPLE] if greedy else []), *range(n)]
        return [sample for sample in wanted if (problem, sample) not in self.found]

    def attempts(self, problem: int, n: int, greedy: bool) -> Attempts:
        """All that was written for a problem."""
        first = self.found[problem, GREEDY_SAMPLE] if greedy else None
        return Attempts(first, [self.found[problem, sample] for sample in range(n)])


def read_attempts(path: Path, numbers: Sequence[int], n: int) -> list[Attempts]:
    """The greedy answer and n samples of each numbered problem, from the file of a run that has finished.

    Raises:
        ValueError: a line is no answer, or an answer is missing.
    """
    found = dict(_answer(path, i, line)[:2] for i, line in enumerate(path.read_bytes().splitlines(), 1))
    places = [(number, sample) for number in numbers for sample in (GREEDY_SAMPLE, *range(n))]
    missing = [place for place in places if place not in found]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(places)} answers are missing, the first of them to problem "
            f"{missing[0][0]}. Run task=best_of_n again."
        )
    rows = [[found[number, sample] for sample in (GREEDY_SAMPLE, *range(n))] for number in numbers]
    return [Attempts(greedy, samples) for greedy, *samples in rows]


def _answer(path: Path, number: int, line: bytes) -> tuple[tuple[int, int], Continuation, str]:
    """A line of such a file: problem and sample, the answer, and the key of the settings."""
    try:
        row = json.loads(line)
        return (row["problem"], row["sample"]), Continuation(row["text"], row["ended"]), row["settings"]
    except (ValueError, KeyError, TypeError) as cause:
        raise ValueError(f"{path}, line {number}: is no answer ({cause}). Remove the line.") from cause


@torch.no_grad()
def solve(
    model: CausalLM,
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    greedy: bool = True,
    batch_size: int,
    seed: int = 0,
    numbers: Sequence[int] | None = None,
    file: AttemptFile,
    describe: Callable[[int, str], dict[str, Any]] = lambda place, text: {},
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Attempts]:
    """Answer each prompt greedily and n times at random.

    All answers to a problem continue its prompt, which is computed once for those that are written side by side, and
    answers that wait take the place of those that have ended (`continue_owned`). Several problems are answered side by
    side where the model's cache `takes_waiting`. An answer depends on the seed, on the number of its problem and on its
    own number, and, but for rounding, on nothing that is computed beside it.

    Args:
        model: any decoder, in evaluation mode.
        tokenizer: of the model.
        prompts: ids of each, not empty.
        n: answers that are drawn of each.
        max_new_tokens, sampling, stop: as in `continue_ids`.
        greedy: write the most likely answer too.
        batch_size: answers that are written side by side. Most likely ones that are looked up come one by one.
        seed: of the draws.
        numbers: of the problems in their split; None: 0, 1, 2 and so on.
        file: where answers go as they end, and stand in their order at last. What it holds is not sampled again.
        describe: what else its lines say of an answer: called with the place of the prompt, and the text.
        progress: called with how many problems are done, of how many.

    Returns:
        In the order of the prompts.
    """
    numbers = list(range(len(prompts))) if numbers is None else numbers
    require(1 <= n <= MOST_SAMPLES, "n", n, f"must lie between 1 and {MOST_SAMPLES}", "Change it")
    longest = max(map(len, prompts), default=0) + max_new_tokens
    missing = [file.missing(number, n, greedy) for number in numbers]
    left = [len(samples) for samples in missing]

    def answer(wanted: Sequence[tuple[int, int]], sampling: Sampling, rows: int) -> None:
        """Write samples, each by the place of its problem and its number."""
        numbered = {place: number for number, place in enumerate(dict.fromkeys(place for place, _ in wanted))}
        owners = [numbered[place] for place, _ in wanted]
        seeds = [((seed * 2**31 + numbers[place]) * MOST_SAMPLES + max(sample, 0)) % 2**63 for place, sample in wanted]

        def ended(text: int, said: Continuation) -> None:
            place, sample = wanted[text]
            row = {"problem": numbers[place], "sample": sample, **describe(place, said.text)}
            file.add([{**row, "text": said.text, "ended": said.ended}])
            left[place] -= 1
            if not left[place]:
                progress(left.count(0), len(prompts))

        continue_owned(model, tokenizer, [prompts[place] for place in numbered], owners, rows, sampling=sampling,
                       max_new_tokens=max_new_tokens, stop=stop, seeds=seeds, ended=ended)  # fmt: skip

    places = range(len(prompts))
    mixes = not sampling.compile and takes_waiting(model, longest)
    for group in [places] if mixes else [[place] for place in places]:
        wanted = [(place, sample) for place in group for sample in missing[place]]
        likely = [one for one in wanted if one[1] == GREEDY_SAMPLE]
        drawn = [one for one in wanted if one[1] != GREEDY_SAMPLE]
        if likely:
            answer(likely, replace(GREEDY, lookup=sampling.lookup), 1 if sampling.lookup else batch_size)
        if drawn:
            answer(drawn, sampling, batch_size)
    file.arrange()
    return [file.attempts(number, n, greedy) for number in numbers]
