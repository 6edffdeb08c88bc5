"""Several answers to each of several prompts, all written side by side, and what the model thought of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modern_llm.models.decoding.continuous import padded_left
from modern_llm.models.decoding.endings import collect_texts, stop_place, stops, without_end
from modern_llm.models.decoding.generation import (
    CausalLM,
    Continuation,
    DecodingCache,
    Observe,
    TextCodec,
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
        chance = logits.log_softmax(-1)  # (n, V)
        # What a filter dropped has no chance, and adds nothing.
        entropy = -(chance.exp() * chance.clamp(min=torch.finfo(chance.dtype).min)).sum(-1)
        self.rows.append(torch.as_tensor(list(rows)))
        self.values.append(torch.stack([chance.gather(1, ids[:, None])[:, 0], entropy], 1))  # (n, 2)

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
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seeds: Sequence[int],
    observe: Observe | None = None,
) -> list[tuple[list[int], Continuation]]:
    """Continue P prompts, each as often as it is named. Every prompt is computed once and, where the cache can share
    it, held and read once; all B texts are written in one batch, which those that have ended leave.

    Args:
        model: in evaluation mode, with a cache that `takes_waiting`, unless prompts are equally long.
        tokenizer: of the model.
        prompts: ids of each, not empty.
        owners: (B,) number of the prompt that each text continues; none is left out.
        max_new_tokens: at most so many tokens each.
        sampling: how a token is chosen, without a repetition penalty, which would have to read the prompts again.
        stop: strings that end a text, cut before the first one behind its first visible character.
        seeds: (B,) of the texts.
        observe: as in `stream_tokens`.

    Returns:
        Of each text the ids, with the end of text where it was drawn, and what was written.
    """
    device, eos_id = model.output_head.weight.device, tokenizer.eos_id
    longest, B = max(map(len, prompts)), len(owners)
    padded, real = padded_left(prompts, eos_id, device)
    rows = torch.tensor(list(owners), device=device)
    cache: DecodingCache | None = None
    given, mask = padded[rows], real[rows]
    if min(map(len, prompts)) > 1:  # the last token of each prompt is read with its continuations
        before = real[:, :-1]
        held = model.new_cache(len(prompts), longest + max_new_tokens)
        model.hidden_states(padded[:, :-1], attention_mask=None if bool(before.all()) else before, cache=held)
        # A compiled step reads keys and values where they lie.
        may_share = len(prompts) < B and not sampling.compile and hasattr(held, "share")
        if (may_share and held.share(list(owners))) or held.keep(rows):
            cache, given, mask = held, padded[rows, -1:], real[rows, -1:]
    closed: set[int] = set()
    steps = stream_tokens(model, given, mask, max_new_tokens=max_new_tokens, sampling=sampling, seed=seeds,
                          closed=closed, cache=cache, observe=observe)  # fmt: skip

    def finished(row: int, ids: list[int]) -> bool:
        return stops(tokenizer, ids, stop)

    written = []
    for row, ids in enumerate(collect_texts(steps, B, closed, eos_id, finished if stop else None)):
        text = tokenizer.decode(without_end(ids, eos_id))
        written.append((ids, Continuation(text[: stop_place(text, stop)], row in closed)))
    return written


@torch.no_grad()
def draw(
    model: CausalLM,
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    stop: Sequence[str] = (),
    seeds: Sequence[int],
) -> list[list[Drawn]]:
    """n answers to each of P prompts, by `continue_owned`, and what the model thought of them.

    Args:
        model, tokenizer, prompts, max_new_tokens, sampling, stop: as there.
        n: answers to each.
        seeds: (P n,) of the answers: those to the first prompt first.

    Returns:
        n answers to each prompt.
    """
    thoughts, owners = _Thoughts(), [owner for owner in range(len(prompts)) for _ in range(n)]
    written = continue_owned(model, tokenizer, prompts, owners, max_new_tokens=max_new_tokens, sampling=sampling,
                             stop=stop, seeds=seeds, observe=thoughts)  # fmt: skip
    drawn = []
    for (ids, one), known in zip(written, thoughts.by_row(len(owners)), strict=True):
        log_probs, entropies = zip(*known[: len(ids)], strict=True)  # a row that has ended may be computed a little on
        drawn.append(Drawn(ids, list(log_probs), list(entropies), one.text, one.ended))
    return [drawn[start : start + n] for start in range(0, len(owners), n)]
