"""Several answers to each of several prompts, written side by side, and what the model thought of every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from modern_llm.models.decoding.continuous import generate_waiting
from modern_llm.models.decoding.endings import collect_texts, stops, without_end
from modern_llm.models.decoding.generation import (
    CausalLM,
    Continuation,
    Observe,
    Prefix,
    TextCodec,
    as_continuation,
    prefilled,
    stream_tokens,
)
from modern_llm.models.decoding.sampling import Sampling


@dataclass(frozen=True, slots=True)
class Drawn:
    """One answer.

    Attributes:
        ids: of its tokens; the end of text is the last one where it was drawn.
        log_probs: of each token when it was drawn, in nats.
        entropies: of what each was drawn from, in nats.
        text: without what ends it.
        ended: by the end of text or a stop string, and not by the limit.
    """

    ids: list[int]
    log_probs: list[float]
    entropies: list[float]
    text: str
    ended: bool


@dataclass
class _Thoughts:
    """Log-probability and entropy of every choice of B rows, as they come."""

    rows: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __call__(self, rows: Sequence[int], logits: Tensor, ids: Tensor) -> None:
        log_chance = logits.log_softmax(-1)  # (n, V)
        chosen = log_chance.gather(1, ids[:, None])[:, 0]
        # What a filter dropped has no chance, and adds nothing. In place: these are as many numbers as all logits.
        entropy = -log_chance.exp().mul_(log_chance.clamp_(min=torch.finfo(log_chance.dtype).min)).sum(-1)
        self.rows.append(torch.as_tensor(list(rows)))
        self.values.append(torch.stack([chosen, entropy], 1))  # (n, 2)

    def by_row(self, count: int) -> list[list[tuple[float, float]]]:
        """Of each row, in the order of its tokens; read from the device once."""
        found: list[list[tuple[float, float]]] = [[] for _ in range(count)]
        values = torch.cat(self.values).tolist()
        for row, (log_prob, entropy) in zip(torch.cat(self.rows).tolist(), values, strict=True):
            found[row].append((log_prob, entropy))
        return found


@torch.no_grad()
def continue_owned(
    model: CausalLM,
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    rows: int | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seeds: Sequence[int],
    observe: Observe | None = None,
    ended: Callable[[int, Continuation], None] = lambda text, written: None,
) -> list[tuple[list[int], Continuation]]:
    """Continue P prompts, each as often as it is named, by `generate_waiting`; one after the other where one row is
    all, with `sampling.lookup`.

    Args:
        model: in evaluation mode, with a cache that `takes_waiting`, unless prompts are equally long.
        tokenizer: of the model.
        prompts: ids of each, not empty.
        owners: (B,) number of the prompt that each text continues; none is left out.
        rows: most texts that are written side by side; None: all.
        max_new_tokens: at most so many tokens each.
        sampling: how a token is chosen.
        stop: strings that end a text, cut before the first one behind its first visible character.
        seeds: (B,) of the texts.
        observe: as in `generate_waiting`.
        ended: called as a text ends, with its number and what was written.

    Returns:
        Of each text the ids, with the end of text where it was drawn, and what was written.
    """
    written: dict[int, tuple[list[int], Continuation]] = {}

    def finished(text: int, ids: list[int]) -> bool:
        return stops(tokenizer, ids, stop)

    def told(text: int, ids: list[int]) -> None:
        said = as_continuation(tokenizer, without_end(ids, tokenizer.eos_id), max_new_tokens, stop)
        written[text] = ids, said
        ended(text, said)

    given: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling}
    ends: dict[str, Any] = {"eos_id": tokenizer.eos_id, "finished": finished if stop else None}
    if min(rows or len(owners), len(owners)) == 1:
        prefix: tuple[int, Prefix | None] | None = None
        for text in sorted(range(len(owners)), key=lambda text: owners[text]):
            *shared, last = prompts[owners[text]]
            if prefix is None or prefix[0] != owners[text]:
                prefix = owners[text], prefilled(model, shared) if shared else None
            watch = None if observe is None else partial(_as_text, observe, text)
            closed: set[int] = set()
            start = torch.tensor([[last]], device=model.output_head.weight.device)
            steps = stream_tokens(
                model, start, seed=[seeds[text]], prefix=prefix[1], closed=closed, observe=watch, **given
            )
            told(text, *collect_texts(steps, 1, closed, **ends))
    else:
        generate_waiting(model, prompts, rows or len(owners), owners=owners, seeds=seeds, observe=observe, ended=told,
                         **given, **ends)  # fmt: skip
    return [written[text] for text in range(len(owners))]


def _as_text(observe: Observe, text: int, rows: Sequence[int], logits: Tensor, ids: Tensor) -> None:
    """The only row of a batch has the number of its text."""
    observe([text], logits, ids)


@torch.no_grad()
def draw(
    model: CausalLM,
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    n: int,
    rows: int | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seeds: Sequence[int],
) -> list[list[Drawn]]:
    """n answers to each of P prompts, by `continue_owned`, and what the model thought of them.

    Args:
        model, tokenizer, prompts, rows, max_new_tokens, sampling, stop: as there.
        n: answers to each.
        seeds: (P n,) of the answers: those to the first prompt first.

    Returns:
        n answers to each prompt.
    """
    thoughts, owners = _Thoughts(), [owner for owner in range(len(prompts)) for _ in range(n)]
    written = continue_owned(model, tokenizer, prompts, owners, rows, max_new_tokens=max_new_tokens, sampling=sampling,
                             stop=stop, seeds=seeds, observe=thoughts)  # fmt: skip
    drawn = []
    for (ids, one), known in zip(written, thoughts.by_row(len(owners)), strict=True):
        log_probs, entropies = zip(*known[: len(ids)], strict=True)  # a row that has ended may be computed a little on
        drawn.append(Drawn(ids, list(log_probs), list(entropies), one.text, one.ended))
    return [drawn[start : start + n] for start in range(0, len(owners), n)]
