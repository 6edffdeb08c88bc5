"""Continuous batching (Yu et al. 2022, Orca, OSDI, section 3.2): texts that wait enter a batch as others in it end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from modern_llm.models.decoding.choosing import choose, filter_logits
from modern_llm.models.decoding.compiled import CompiledSteps, fixed_capacity, holds_what_is_kept
from modern_llm.models.decoding.endings import without_end
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.decoding.uniform import UniformNumbers
from modern_llm.models.kernels import device_of, tokens_per_read

if TYPE_CHECKING:
    from modern_llm.models.decoding.generation import CausalLM, Observe, Prefix


Progress = Callable[[int, int], None]


def takes_waiting(model: CausalLM, max_tokens: int) -> bool:
    """Whether the model's cache lets texts of at most `max_tokens` tokens enter a batch in flight."""
    beyond = tokens_per_read(device_of(model.output_head.weight)) - 1
    return bool(getattr(model.new_cache(1, max_tokens + beyond), "joins", False))


def padded_left(prompts: Sequence[Sequence[int]], filler: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths as ids (B, T), the shorter ones with `filler` in front, and a mask (B, T), 0 there."""
    longest = max(map(len, prompts))
    ids = [[filler] * (longest - len(prompt)) + [*prompt] for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@dataclass
class _Rows:
    """The texts that are computed side by side.

    Attributes:
        texts: number of the text in each row.
        own: tokens of each that the cache holds behind its prompt.
        begun: (n, d) hidden states of the last tokens of their prompts.
        last: (n, 1) newest ids.
        numbers: that they are drawn with.
        occurred: (n, V) as in `filter_logits`, or None.
    """

    texts: list[int]
    own: list[int]
    begun: Tensor
    last: Tensor
    numbers: UniformNumbers
    occurred: Tensor | None

    def at(self, places: list[int]) -> _Rows:
        rows = torch.tensor(places, dtype=torch.long, device=self.last.device)
        occurred = None if self.occurred is None else self.occurred[rows]
        texts, own = ([facts[place] for place in places] for facts in (self.texts, self.own))
        return _Rows(texts, own, self.begun[rows], self.last[rows], self.numbers.at(places), occurred)

    def with_more(self, more: _Rows) -> _Rows:
        occurred = None
        if self.occurred is not None and more.occurred is not None:
            occurred = torch.cat([self.occurred, more.occurred])
        begun, last = (torch.cat(pair) for pair in ((self.begun, more.begun), (self.last, more.last)))
        numbers = self.numbers.with_more(more.numbers)
        return _Rows(self.texts + more.texts, self.own + more.own, begun, last, numbers, occurred)


@torch.no_grad()
def generate_waiting(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    rows: int,
    *,
    owners: Sequence[int] | None = None,
    max_new_tokens: int,
    sampling: Sampling,
    eos_id: int,
    seeds: Sequence[int],
    finished: Callable[[int, list[int]], bool] | None = None,
    prefix: Prefix | None = None,
    observe: Observe | None = None,
    ended: Callable[[int, list[int]], None] = lambda text, ids: None,
) -> list[list[int]]:
    """Write any number of texts, `rows` of them side by side. Each is, but for rounding, the one that is written alone.

    Texts that wait enter as others end, those to one prompt together. A prompt is computed once for all that enter
    with it, and not again for those that enter while a text goes on from it, unless parts of the model look back by
    other means than keys and values; where it pays and the cache can share it, it is held and read once. Where the
    cache does not let texts enter (`takes_waiting`), and with compiled steps, whole batches follow each other.

    Args:
        model: anything that meets `CausalLM`; put into evaluation mode while texts are written.
        prompts: ids of each, not empty.
        rows: most texts that are computed at once.
        owners: number of the prompt that each text continues, none of which is left out; None: one text each.
        max_new_tokens, sampling, eos_id, finished, prefix: as in `generate`.
        seeds: of the generator that each text draws from.
        observe: as in `stream_tokens`; it is shown choices behind the end of a text, too.
        ended: called as a text ends, with its number and its new ids, eos among them.

    Returns:
        New ids of every text, without prompt and eos.
    """
    was_training = model.training
    model.train(False)
    try:
        writer = _Writer(model, prompts, rows, owners, max_new_tokens, sampling, eos_id, seeds, prefix, observe)
        return [without_end(ids, eos_id) for ids in writer.write(finished, ended)]
    finally:
        model.train(was_training)


class _Writer:
    """What `generate_waiting` does; arguments as there."""

    def __init__(
        self,
        model: CausalLM,
        prompts: Sequence[Sequence[int]],
        rows: int,
        owners: Sequence[int] | None,
        max_new_tokens: int,
        sampling: Sampling,
        eos_id: int,
        seeds: Sequence[int],
        prefix: Prefix | None,
        observe: Observe | None,
    ) -> None:
        self.model, self.prompts, self.rows, self.prefix, self.observe = model, prompts, rows, prefix, observe
        self.max_new_tokens, self.sampling, self.eos_id = max_new_tokens, sampling, eos_id
        self.owners = range(len(prompts)) if owners is None else owners
        self.in_front = [] if prefix is None else prefix.ids
        self.head = model.output_head.ready()
        self.device = self.head.weight.device
        self.every = tokens_per_read(device_of(self.head.weight))
        # Behind a prompt: rows are computed up to `every - 1` tokens beyond their end.
        self.room = max_new_tokens + self.every - 1
        self.seeds = seeds
        texts = range(len(self.owners))
        # From the end: the longest leave first, and those to one prompt are neighbours.
        self.waiting = sorted(texts, key=lambda text: (len(prompts[self.owners[text]]), -self.owners[text], -text))
        self.open = set(texts)
        self.cache: Any = None
        none = torch.zeros(0, 1, device=self.device)
        self.batch = _Rows([], [], none, none.long(), UniformNumbers([], self.device), None)
        self.capacity = 0  # tokens, of the cache
        self.shares = False  # whether prompts are held once in it
        self.steps: CompiledSteps | None = None

    def write(
        self, finished: Callable[[int, list[int]], bool] | None, ended: Callable[[int, list[int]], None]
    ) -> list[list[int]]:
        """Ids of every text, eos among them."""
        texts: list[list[int]] = [[] for _ in self.owners]
        while self.open:
            records = self._change_rows()
            while len(records) < self.every:
                records.append((self.batch.texts, self._choose(self.batch, self._step())))
            read = torch.cat([ids for _, ids in records]).tolist()
            for text, token in zip([text for written, _ in records for text in written], read, strict=True):
                if text not in self.open:
                    continue
                texts[text].append(token)
                at_end = token == self.eos_id or (finished is not None and finished(text, texts[text]))
                if at_end or len(texts[text]) == self.max_new_tokens:
                    self.open.remove(text)
                    ended(text, texts[text])
        return texts

    # -- a step -----------------------------------------------------------------------------------------------------

    def _step(self) -> Tensor:
        """(n, d) hidden states of the newest ids, which the cache holds then."""
        if self.sampling.compile and self.steps is None and holds_what_is_kept(self.cache):
            self.steps = CompiledSteps(self.model, self.cache, self.capacity)
        self.batch.own = [tokens + 1 for tokens in self.batch.own]
        if self.steps is not None:
            return self.steps(self.batch.last)
        hidden: Tensor = self.model.hidden_states(self.batch.last, cache=self.cache).hidden[:, -1]
        return hidden

    def _choose(self, batch: _Rows, hidden: Tensor) -> Tensor:
        """(n,) the next id of each row, of its last hidden state (n, d)."""
        logits = filter_logits(self.head.logits(hidden), self.sampling, batch.occurred)
        ids = choose(logits, self.sampling, batch.numbers)
        if self.observe is not None:
            self.observe(batch.texts, logits, ids)
        if batch.occurred is not None:
            batch.occurred.scatter_(1, ids[:, None], True)
        batch.last = ids[:, None]
        return ids

    # -- who is in the batch ----------------------------------------------------------------------------------------

    def _change_rows(self) -> list[tuple[list[int], Tensor]]:
        """Let texts leave and enter, where it is time; texts that have entered, and their first ids (n,)."""
        staying = [place for place, text in enumerate(self.batch.texts) if text in self.open]
        joins = not self.sampling.compile and getattr(self.cache, "joins", False)
        free = min(self.rows - len(staying), len(self.waiting)) if joins or not staying else 0
        # Entering moves the whole cache: several at once, or whoever is left.
        if free and (free >= self.rows // 4 or free == len(self.waiting)):
            return [self._enter(staying, [self.waiting.pop() for _ in range(free)], joins)]
        few = 2 * len(staying) <= len(self.batch.texts)
        if joins and (few or self.cache.length + self.every > self.capacity):
            self.batch = self.batch.at(staying)
            self._join(staying, None)
        elif few and not self.sampling.compile and self.cache.keep(self._on_device(staying)):
            self.batch = self.batch.at(staying)
        return []

    def _enter(self, staying: list[int], entering: list[int], joins: bool) -> tuple[list[int], Tensor]:
        """Go on with the rows at these places, and with texts that wait."""
        held = {}
        if joins and getattr(self.cache, "forgets_apart", False):
            held = {self.owners[text]: place for place, text in enumerate(self.batch.texts)}
        again = [text for text in entering if self.owners[text] in held]
        fresh = [text for text in entering if self.owners[text] not in held]
        places = [held[self.owners[text]] for text in again]
        if not staying and not again:
            self.cache, self.shares, self.steps = None, False, None  # freed in front of the next one
        more, begun = self._prefilled(fresh) if fresh else (None, self.batch.begun[:0])
        if self.cache is not None:
            begun = torch.cat([self.batch.begun[self._on_device(places)], begun])
        occurred = self._occurred(again + fresh)
        numbers = UniformNumbers([self.seeds[text] for text in again + fresh], self.device)
        newcomers = _Rows(again + fresh, [0] * len(entering), begun, self.batch.last[:0], numbers, occurred)
        chosen = self._choose(newcomers, begun)
        if self.cache is None:
            self.cache, self.batch = more, newcomers
        else:
            forgotten = [0] * len(staying) + [self.batch.own[place] for place in places]
            self.batch = self.batch.at(staying).with_more(newcomers)
            self._join(staying + places, more, forgotten if again else None)
        return newcomers.texts, chosen

    def _join(self, places: list[int], more: Any, forgotten: list[int] | None = None) -> None:
        """Hold the rows at these places, without what is forgotten of them, and those of another cache: the batch."""
        given: dict[str, Any] = {}
        prompts = [len(self.in_front) + len(self.prompts[self.owners[text]]) for text in self.batch.texts]
        length = max(map(sum, zip(prompts, self.batch.own, strict=True)))
        if self.shares:
            given["shared"], length = max(prompts), max(prompts) + max(self.batch.own)
            self.capacity = max(prompts) + self.room
        if forgotten is not None:
            given["forgotten"] = self._on_device(forgotten)
        self.cache.join(self._on_device(places), more, length, **given)

    def _prefilled(self, texts: list[int]) -> tuple[Any, Tensor]:
        """A cache that holds the prompt of each text, shared as the batch's are or, where there is none, where it pays;
        and the hidden state (n, d) of its last token."""
        owners = [self.owners[text] for text in texts]
        asked = list(dict.fromkeys(owners))
        places = [asked.index(owner) for owner in owners]
        rows = self._on_device(places)
        cache, hidden = self._read([self.prompts[owner] for owner in asked])
        if self.cache is None:
            pays = len(asked) < len(owners) and not self.sampling.compile and hasattr(cache, "share")
            self.shares = pays and cache.share(places)
        elif self.shares:
            cache.share(places, always=True)
        if not self.shares and len(asked) < len(owners) and not cache.keep(rows):
            return self._read([self.prompts[owner] for owner in owners])
        return cache, hidden[rows]

    def _on_device(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    def _read(self, prompts: list[Sequence[int]]) -> tuple[Any, Tensor]:
        """A cache that holds prompts and has room for what follows, and the hidden states (n, d) of their ends."""
        ids, mask = padded_left(prompts, self.eos_id, self.device)
        tokens = len(self.in_front) + ids.shape[1] + self.room
        tokens = fixed_capacity(tokens) if self.sampling.compile else tokens
        if self.cache is None:
            self.capacity = tokens
        if self.prefix is None:
            cache = self.model.new_cache(len(prompts), tokens)
        else:
            cache = self.prefix.repeated(len(prompts), tokens - len(self.in_front))
        padded = min(map(len, prompts)) < ids.shape[1]
        output = self.model.hidden_states(ids, attention_mask=mask if padded else None, cache=cache)
        return cache, output.hidden[:, -1]

    def _occurred(self, texts: list[int]) -> Tensor | None:
        """(n, V) True at the ids of the prompt of each text, where they are penalised."""
        if self.sampling.repetition_penalty == 1:
            return None
        seen = torch.zeros(len(texts), len(self.head.weight), dtype=torch.bool, device=self.device)
        for row, text in zip(seen, texts, strict=True):
            row[[*self.in_front, *self.prompts[self.owners[text]]]] = True
        return seen
