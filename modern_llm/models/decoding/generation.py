"""Decoding loops over anything with a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from modern_llm.models.decoding.choosing import choose, filter_logits
from modern_llm.models.decoding.compiled import CompiledSteps, fixed_capacity, holds_what_is_kept
from modern_llm.models.decoding.continuous import Progress, generate_waiting, padded_left
from modern_llm.models.decoding.endings import collect_texts, stop_place, stops, without_end
from modern_llm.models.decoding.lookup import stream_by_lookup
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.models.decoding.uniform import UniformNumbers
from modern_llm.models.output_head import OutputHead


class DecodingCache(Protocol):
    """Keys and values of B texts, as generation sees them."""

    @property
    def length(self) -> int:
        """Tokens seen so far, padding included."""

    def repeated(self, batch_size: int, max_tokens: int) -> Any:
        """A cache for `batch_size` texts that all begin with the one text held here."""

    def keep(self, rows: Tensor) -> bool:
        """Hold the texts of the rows (n,) alone, each as often as it is named. False: this cache cannot, and holds all
        texts still."""

    def make_reversible(self) -> bool:
        """From here on, let the last tokens be forgotten again. False: this cache cannot."""

    def forget(self, tokens: int) -> None:
        """Forget at least the last `tokens` tokens of the last pass; `length` tells what is left. Needs
        `make_reversible` in front of that pass."""


class CausalLM(Protocol):
    """What generation, evaluation and the objectives ask of a causal language model."""

    training: bool

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""

    def new_cache(self, batch_size: int, max_tokens: int | None) -> Any:
        """An empty cache for B texts."""

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: Any | None = None,
    ) -> Any:
        """An output whose `hidden` is (B, T, d), after the final norm."""

    def train(self, mode: bool = True) -> Any: ...


Observe = Callable[[Sequence[int], Tensor, Tensor], None]


class TextCodec(Protocol):
    """What `generate_text` asks of a tokenizer."""

    eos_id: int

    @property
    def bos_id(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Prefix(NamedTuple):
    """One text that others begin with."""

    ids: list[int]
    cache: DecodingCache  # that holds it

    def repeated(self, batch_size: int, max_tokens: int) -> Any:
        """A cache for `batch_size` texts that begin with it and then have `max_tokens` tokens each."""
        return self.cache.repeated(batch_size, len(self.ids) + max_tokens)

    def shared(self, batch_size: int, max_tokens: int) -> Any:
        """Likewise, for texts that come one token at a time: they share it where its cache can."""
        if batch_size > 1 and hasattr(self.cache, "share"):
            cache = self.repeated(1, max_tokens)
            if cache.share([0] * batch_size):
                return cache
        return self.repeated(batch_size, max_tokens)


def prefilled(model: CausalLM, ids: Sequence[int]) -> Prefix:
    """One text as the prefix of others that begin with it."""
    cache = model.new_cache(1, len(ids))
    model.hidden_states(torch.tensor([list(ids)], device=model.output_head.weight.device), cache=cache)
    return Prefix(list(ids), cache)


@torch.no_grad()  # as a decorator: between two tokens the caller's own mode is back
def stream_tokens(
    model: CausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    seed: int | Sequence[int] = 0,
    prefix: Prefix | None = None,
    closed: set[int] | None = None,
    cache: DecodingCache | None = None,
    known: Sequence[int] = (),
    observe: Observe | None = None,
) -> Iterator[Tensor]:
    """Prefill, then one token a step on a preallocated cache; a single text takes several where `sampling.lookup` finds
    them.

    Args:
        model: anything that meets `CausalLM`; put into evaluation mode while the stream runs.
        input_ids: (B, T) prompts.
        attention_mask: (B, T) 0 at padding, which stands on the left; None: no padding.
        max_new_tokens: None streams without end, on a bounded cache, which needs a window or sinks.
        sampling: how a token is chosen.
        seed: row b draws from a generator seeded with seed + b; or the seeds of all rows.
        prefix: one text that every prompt continues; computed once, however many prompts there are.
        closed: rows that need no more tokens; whoever reads the stream adds to them. Once they are half of what is
            computed they leave the batch, and their ids mean nothing.
        cache: of the texts that the prompts continue. It is written to, and holds all but the last token that came.
        known: ids in front of a single prompt that `cache` holds, for the repetition penalty and look-up.
        observe: is shown every choice: the rows (n,) that are computed, the logits (n, V) that it was made from and the
            ids (n,) that were chosen.

    Yields:
        (B,) ids of the next token of every text.

    Raises:
        ValueError: an empty prompt, padding on the right, an endless stream behind a prefix or compiled, look-up with a
            cache that cannot forget, or compiled steps of a model that takes none.
    """
    if max_new_tokens is None and (prefix is not None or sampling.compile):
        told = "that is compiled" if prefix is None else "behind a prefix"
        raise ValueError(f"max_new_tokens=None: a stream {told} needs an end. Give a number of tokens.")
    B, T = input_ids.shape
    if T == 0:
        raise ValueError("input_ids: a prompt has no tokens. Start it with the tokenizer's bos or eos token.")
    if attention_mask is not None and not bool(attention_mask[:, -1].all()):
        raise ValueError("attention_mask: a prompt ends in padding. Pad on the left.")
    if attention_mask is not None and bool(attention_mask.all()):
        attention_mask = None
    if B == 1 and attention_mask is not None:  # a single text needs no padding
        input_ids, attention_mask = input_ids[attention_mask.bool()][None], None
        T = input_ids.shape[1]
    device = input_ids.device
    seeds = range(seed, seed + B) if isinstance(seed, int) else seed
    numbers = UniformNumbers(seeds, device)
    occurred = None
    was_training = model.training
    steps: CompiledSteps | None = None
    model.train(False)
    try:
        head = model.output_head.ready()
        room = None if max_new_tokens is None else T + max_new_tokens
        if room is not None and sampling.compile:
            in_front = 0 if prefix is None else len(prefix.ids)
            room = fixed_capacity(in_front + room) - in_front
        if prefix is not None:
            repeated = prefix.shared if T == 1 and not sampling.compile else prefix.repeated
            cache, known = repeated(B, room or 0), prefix.ids
        if sampling.repetition_penalty != 1:
            occurred = torch.zeros(B, len(head.weight), dtype=torch.bool, device=device).scatter_(1, input_ids, True)
            if attention_mask is not None:  # the padding id counts only where it is a real token
                padded = torch.where(attention_mask.bool(), input_ids, input_ids[:, -1:])
                occurred = torch.zeros_like(occurred).scatter_(1, padded, True)
            occurred[:, list(known)] = True
        if cache is None:
            cache = model.new_cache(B, room)
        if sampling.lookup and B == 1:
            yield from stream_by_lookup(model, head, cache, [*known, *input_ids[0].tolist()], T, max_new_tokens,
                                        sampling, numbers, occurred, observe)  # fmt: skip
            return
        step_ids, mask, produced = input_ids, attention_mask, 0
        rows, chosen = list(range(B)), input_ids[:, -1]  # rows that are computed; ids of all
        while max_new_tokens is None or produced < max_new_tokens:
            # A compiled step is for one number of rows.
            leaving = () if sampling.compile or closed is None else closed
            staying = [place for place, row in enumerate(rows) if row not in leaving]
            if produced and 0 < 2 * len(staying) <= len(rows) and cache.keep(torch.tensor(staying, device=device)):
                rows, numbers = [rows[i] for i in staying], numbers.at(staying)
                places = torch.tensor(rows, device=device)
                step_ids = step_ids[staying]
                occurred = None if occurred is None else occurred[staying]
            if steps is None and sampling.compile and produced and holds_what_is_kept(cache):
                assert max_new_tokens is not None
                steps = CompiledSteps(model, cache, cache.length + max_new_tokens)
            if steps is None:
                hidden = model.hidden_states(step_ids, attention_mask=mask, cache=cache).hidden[:, -1]
            else:
                hidden = steps(step_ids)
            logits = filter_logits(head.logits(hidden), sampling, occurred)
            ids = choose(logits, sampling, numbers)
            if observe is not None:
                observe(rows, logits, ids)
            if occurred is not None:
                occurred.scatter_(1, ids[:, None], True)
            step_ids, mask, produced = ids[:, None], None, produced + 1
            chosen = ids if len(rows) == B else chosen.index_copy(0, places, ids)
            yield chosen
    finally:
        model.train(was_training)
        if steps is not None:
            steps.release()


def generate(
    model: CausalLM,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    eos_id: int | None = None,
    seed: int | Sequence[int] = 0,
    finished: Callable[[int, list[int]], bool] | None = None,
    prefix: Prefix | None = None,
) -> list[list[int]]:
    """Continue a batch of prompts.

    Args:
        model, input_ids, attention_mask, sampling, seed, prefix: as in `stream_tokens`.
        max_new_tokens: at most this many per text.
        eos_id: ends a text; not part of the result.
        finished: called with the row and its new ids after each token; True ends the text.

    Returns:
        New ids of every text, without prompt and eos.
    """
    closed: set[int] = set()
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "seed": seed, "prefix": prefix}
    steps = stream_tokens(model, input_ids, attention_mask, closed=closed, **options)
    return [without_end(ids, eos_id) for ids in collect_texts(steps, len(input_ids), closed, eos_id, finished)]


class Continuation(NamedTuple):
    """What a model wrote behind a prompt."""

    text: str
    ended: bool  # by the end-of-text token or a stop string, and not by the limit


def as_continuation(
    tokenizer: TextCodec, ids: list[int], max_new_tokens: int, stop: Sequence[str], stop_in_blanks: bool = False
) -> Continuation:
    """What new ids without eos say; arguments as in `continue_ids`."""
    text = tokenizer.decode(ids)
    cut = stop_place(text, stop, stop_in_blanks)
    return Continuation(text[:cut], ended=cut is not None or len(ids) < max_new_tokens)


def continue_ids(
    model: CausalLM,
    tokenizer: TextCodec,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    stop_in_blanks: bool = False,
    seed: int | Sequence[int] = 0,
    prefix: Prefix | None = None,
    rows: int | None = None,
    progress: Progress = lambda done, of: None,
) -> list[Continuation]:
    """Continue prompts of any lengths side by side, shorter ones padded on the left.

    Args:
        model: anything that meets `CausalLM`.
        tokenizer: of the model.
        prompts: ids of each, not empty.
        max_new_tokens: at most this many tokens per text.
        sampling: how a token is chosen.
        stop: strings that end a text; it is cut before the first one behind its first visible character.
        stop_in_blanks: they end it in front of that character, too.
        seed: text b draws from a generator seeded with seed + b; or the seeds of all texts.
        prefix: one text that every prompt continues.
        rows: of the batch, which waiting prompts enter as texts end, on a cache that `takes_waiting`; None: all at
            once.
        progress: called with how many texts have ended, of how many, where prompts wait.

    Raises:
        ValueError: an empty stop string, or an empty prompt.
    """
    if any(not s for s in stop):
        raise ValueError("stop='': an empty string ends every text at once. Leave it out.")
    if not prompts:
        return []

    def finished(row: int, ids: list[int]) -> bool:
        return stops(tokenizer, ids, stop, stop_in_blanks)

    done = count(1)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "eos_id": tokenizer.eos_id,
                               "finished": finished if stop else None, "prefix": prefix}  # fmt: skip
    if rows is not None and rows < len(prompts):
        seeds = range(seed, seed + len(prompts)) if isinstance(seed, int) else seed
        texts = generate_waiting(model, prompts, rows, seeds=seeds,
                                 ended=lambda text, ids: progress(next(done), len(prompts)), **options)  # fmt: skip
    else:
        device = model.output_head.weight.device
        texts = generate(model, *padded_left(prompts, tokenizer.eos_id, device), seed=seed, **options)
    return [as_continuation(tokenizer, ids, max_new_tokens, stop, stop_in_blanks) for ids in texts]


def generate_text(
    model: CausalLM,
    tokenizer: TextCodec,
    prompts: str | Sequence[str],
    *,
    max_new_tokens: int = 100,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> list[str]:
    """Continue texts.

    Args:
        model, tokenizer, max_new_tokens, sampling, stop, seed: as in `continue_ids`.
        prompts: one text or several; the tokenizer's bos token, where it has one, starts every prompt.

    Returns:
        The continuations, without their prompts.

    Raises:
        ValueError: an empty stop string.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    start = [tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id]
    return [
        continuation.text
        for continuation in continue_ids(
            model,
            tokenizer,
            [start + tokenizer.encode(prompt) for prompt in prompts],
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop=stop,
            seed=seed,
        )
    ]
