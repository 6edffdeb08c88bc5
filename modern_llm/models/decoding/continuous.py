"""Continuous batching (Yu et al. 2022, Orca, OSDI, section 3.2): waiting prompts enter a batch as texts in it end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modern_llm.models.decoding.choosing import choose, filter_logits
from modern_llm.models.decoding.endings import without_end
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.kernels import device_of, tokens_per_read

if TYPE_CHECKING:
    from modern_llm.models.decoding.generation import CausalLM, Prefix


Progress = Callable[[int, int], None]


def takes_waiting(model: CausalLM, max_tokens: int) -> bool:
    """Whether the model's cache lets texts of at most `max_tokens` tokens enter a batch in flight."""
    return bool(getattr(model.new_cache(1, max_tokens), "joins", False))


def padded_left(prompts: Sequence[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as ids (B, T), the shorter ones with `filler` in front, and a mask (B, T), 0 there."""
    longest = max(map(len, prompts))
    ids = [[filler] * (longest - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


class _Rows:
    """The texts that are computed side by side.

    Attributes:
        texts: number of the text in each row.
        last: (n, 1) newest ids.
        occurred: (n, V) as in `filter_logits`, or None.
    """

    def __init__(self, texts: list[int], last: Tensor, occurred: Tensor | None) -> None:
        self.texts, self.last, self.occurred = texts, last, occurred

    def keep(self, places: list[int]) -> None:
        self.texts, self.last = [self.texts[place] for place in places], self.last[places]
        self.occurred = None if self.occurred is None else self.occurred[places]

    def add(self, others: _Rows) -> None:
        self.texts, self.last = self.texts + others.texts, torch.cat([self.last, others.last])
        if self.occurred is not None and others.occurred is not None:
            self.occurred = torch.cat([self.occurred, others.occurred])


@torch.no_grad()
def generate_waiting(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    rows: int,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    eos_id: int,
    seeds: Sequence[int],
    finished: Callable[[int, list[int]], bool] | None = None,
    prefix: Prefix | None = None,
    progress: Progress = lambda done, of: None,
) -> list[list[int]]:
    """Continue any number of prompts, `rows` of them side by side. Each text is, but for rounding, the one that is
    written alone.

    Args:
        model: in evaluation mode, with a cache that `takes_waiting`.
        prompts: ids of each, not empty.
        rows: most texts that are computed at once.
        max_new_tokens, sampling, eos_id, finished, prefix: as in `generate`.
        seeds: of the generator that each text draws from.
        progress: called with how many texts have ended, of how many.

    Returns:
        New ids of every text, without prompt and eos.
    """
    head, shared = model.output_head.ready(), [] if prefix is None else prefix.ids
    device = head.weight.device
    every = tokens_per_read(device_of(head.weight))
    # Rows are computed up to `every - 1` tokens beyond their end.
    room = max(map(len, prompts)) + max_new_tokens + every
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    waiting = sorted(range(len(prompts)), key=lambda text: len(prompts[text]))  # the longest leave first
    texts: list[list[int]] = [[] for _ in prompts]
    open_texts = set(waiting)

    def chosen(hidden: Tensor, batch: _Rows) -> Tensor:
        """(n,) the next id of each row, of its last hidden state (n, d)."""
        logits = filter_logits(head.logits(hidden), sampling, batch.occurred)
        ids = choose(logits, sampling, [generators[text] for text in batch.texts])
        if batch.occurred is not None:
            batch.occurred.scatter_(1, ids[:, None], True)
        batch.last = ids[:, None]
        return ids

    def longest(batch: _Rows) -> int:
        """Tokens that the cache holds of its longest text: all but the newest, which is read next."""
        return len(shared) + max(len(prompts[text]) + max(len(texts[text]) - 1, 0) for text in batch.texts)

    batch = _Rows([], torch.zeros(0, 1, dtype=torch.long, device=device), None)
    cache: Any = None
    while open_texts:
        records: list[tuple[list[int], Tensor]] = []
        staying = [place for place, text in enumerate(batch.texts) if text in open_texts]
        free = min(rows - len(staying), len(waiting))
        # Entering moves the whole cache: several at once, or whoever is left.
        if free and (free >= rows // 4 or free == len(waiting)):
            entering = [waiting.pop() for _ in range(free)]
            ids, mask = padded_left([prompts[text] for text in entering], eos_id, device)
            tokens = len(shared) + room
            fresh = model.new_cache(free, tokens) if prefix is None else prefix.repeated(free, room)
            hidden = model.hidden_states(ids, attention_mask=mask, cache=fresh).hidden[:, -1]
            newcomers = _Rows(entering, ids[:, -1:], None)
            if sampling.repetition_penalty != 1:
                seen = torch.zeros(free, len(head.weight), dtype=torch.bool, device=device)
                for row, text in zip(seen, entering, strict=True):
                    row[[*shared, *prompts[text]]] = True
                newcomers.occurred = seen
            records.append((entering, chosen(hidden, newcomers)))
            if not staying:
                cache, batch = fresh, newcomers
            else:
                batch.keep(staying)
                batch.add(newcomers)
                cache.join(torch.tensor(staying, device=device), fresh, longest(batch))
        elif 2 * len(staying) <= len(batch.texts) or cache.length + every > len(shared) + room:
            batch.keep(staying)
            cache.join(torch.tensor(staying, device=device), None, longest(batch))
        while len(records) < every:
            hidden = model.hidden_states(batch.last, cache=cache).hidden[:, -1]
            records.append((batch.texts, chosen(hidden, batch)))
        read = torch.cat([ids for _, ids in records]).tolist()
        for text, token in zip([text for written, _ in records for text in written], read, strict=True):
            if text not in open_texts:
                continue
            texts[text].append(token)
            ended = token == eos_id or (finished is not None and finished(text, texts[text]))
            if ended or len(texts[text]) == max_new_tokens:
                open_texts.remove(text)
                progress(len(texts) - len(open_texts), len(texts))
    return [without_end(ids, eos_id) for ids in texts]
