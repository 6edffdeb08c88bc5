"""Several answers to each of several prompts, all written side by side, and what the model thought of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modern_llm.models.decoding.continuous import padded_left
from modern_llm.models.decoding.endings import collect_texts, stop_place, stops, without_end
from modern_llm.models.decoding.generation import CausalLM, DecodingCache, TextCodec, stream_tokens
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
    """n answers to each of P prompts. Every prompt is computed once and, where the cache can share it, held and read
    once; all P x n answers are written in one batch, which those that have ended leave.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        prompts: ids of each, not empty.
        n: answers to each.
        max_new_tokens: at most so many tokens each.
        sampling: how a token is chosen, without a repetition penalty, which would have to read the prompts again.
        stop: strings that end a text, cut before the first one behind its first visible character.
        seeds: (P n,) of the answers: those to the first prompt first.

    Returns:
        n answers to each prompt.
    """
    device, eos_id = model.output_head.weight.device, tokenizer.eos_id
    longest, B = max(map(len, prompts)), len(prompts) * n
    padded, real = padded_left(prompts, eos_id, device)
    owners = torch.arange(len(prompts), device=device).repeat_interleave(n)
    cache: DecodingCache | None = None
    given, mask = padded[owners], real[owners]
    if min(map(len, prompts)) > 1:  # the last token of each prompt is read with its answers
        before = real[:, :-1]
        held = model.new_cache(len(prompts), longest + max_new_tokens)
        model.hidden_states(padded[:, :-1], attention_mask=None if bool(before.all()) else before, cache=held)
        # A compiled step reads keys and values where they lie.
        shared = n > 1 and not sampling.compile and hasattr(held, "share") and held.share(owners.tolist())
        if shared or held.keep(owners):
            cache, given, mask = held, padded[owners, -1:], real[owners, -1:]
    thoughts = _Thoughts()
    closed: set[int] = set()
    steps = stream_tokens(model, given, mask, max_new_tokens=max_new_tokens, sampling=sampling, seed=seeds,
                          closed=closed, cache=cache, observe=thoughts)  # fmt: skip

    def finished(row: int, ids: list[int]) -> bool:
        return stops(tokenizer, ids, stop)

    texts = collect_texts(steps, B, closed, eos_id, finished if stop else None)
    drawn = []
    for row, (ids, known) in enumerate(zip(texts, thoughts.by_row(B), strict=True)):
        log_probs, entropies = zip(*known[: len(ids)], strict=True)  # a row that has ended may be computed a little on
        text = tokenizer.decode(without_end(ids, eos_id))
        text = text[: stop_place(text, stop)]
        drawn.append(Drawn(ids, list(log_probs), list(entropies), text, row in closed))
    return [drawn[start : start + n] for start in range(0, B, n)]
