"""Speculative decoding by look-up: tokens are proposed from the text itself, and one pass checks them all.

Where the last tokens of a text stood before, what came behind them is likely to come again (prompt lookup decoding,
Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding; LLMA, Yang et al. 2023, arXiv 2304.04487). A proposal counts
only where the model, at that place, chooses the same token with the random number of that place. So the text is, but
for rounding, the one that is written token by token. With proposals that are certain of themselves this is the
acceptance rule of speculative sampling (Leviathan et al. 2022, arXiv 2211.17192, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modern_llm.models.decoding.choosing import choose, filter_logits
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.decoding.uniform import UniformNumbers
from modern_llm.models.output_head import OutputHead

if TYPE_CHECKING:
    from modern_llm.models.decoding.generation import CausalLM, DecodingCache, Observe

_LONGEST_MATCH = 3  # tokens
_FEWEST = 2  # proposals


class TextIndex:
    """A text, and what stood behind the last place of each run of one to three of its tokens.

    Args:
        ids: of its beginning.
    """

    def __init__(self, ids: list[int]) -> None:
        self.ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        for token in ids:
            self.add(token)

    def add(self, token: int) -> None:
        """Continue the text."""
        end = len(self.ids)
        for length in range(1, min(_LONGEST_MATCH, end) + 1):
            self._behind[tuple(self.ids[end - length :])] = end
        self.ids.append(token)

    def proposed(self, count: int) -> list[int]:
        """What stood behind the latest earlier place that agrees with the end of the text on most tokens, `count` ids;
        none where no place agrees. A place so near that its continuation is not written yet is taken to go round."""
        for length in range(min(_LONGEST_MATCH, len(self.ids)), 0, -1):
            place = self._behind.get(tuple(self.ids[-length:]))
            if place is not None:
                period = len(self.ids) - place
                return [self.ids[place + i % period] for i in range(count)]
        return []


def stream_by_lookup(
    model: CausalLM,
    head: OutputHead,
    cache: DecodingCache,
    ids: list[int],
    unread: int,
    max_new_tokens: int | None,
    sampling: Sampling,
    numbers: UniformNumbers,
    occurred: Tensor | None,
    observe: Observe | None,
) -> Iterator[Tensor]:
    """What `stream_tokens` does for one text.

    Args:
        model, max_new_tokens, sampling, observe: as in `stream_tokens`; the model is in evaluation mode.
        head: of the model.
        cache: of the text but for its last tokens. When the stream is closed it holds at most all but the last token
            that came.
        ids: of the text, or of its end.
        unread: how many at its end the cache does not hold.
        numbers: of the text.
        occurred: (1, V) as in `filter_logits`.

    Yields:
        (1,) ids.

    Raises:
        ValueError: the cache cannot forget.
    """
    if not hasattr(cache, "make_reversible") or not cache.make_reversible():
        raise ValueError(
            f"sampling.lookup={sampling.lookup}: {type(cache).__name__}, the cache of this model, cannot forget tokens "
            "that were proposed in vain. Use 0, or give it make_reversible and forget, as DecodingCache says."
        )
    text, device = TextIndex(ids), head.weight.device
    skipped = cache.length - (len(ids) - unread)  # held in front of ids
    produced, ambition = 0, sampling.lookup
    try:
        while max_new_tokens is None or produced < max_new_tokens:
            rest = text.ids[cache.length - skipped :]
            room = ambition if max_new_tokens is None else min(ambition, max_new_tokens - produced - 1)
            # What is read beside proposals may have to be read again: neither the prompt, nor more and more.
            proposed = text.proposed(room) if produced and len(rest) <= 1 + sampling.lookup else []
            step = torch.tensor([rest + proposed], device=device)
            hidden = model.hidden_states(step, cache=cache).hidden[0, -1 - len(proposed) :]
            chosen = _chosen(head.logits(hidden), proposed, sampling, numbers, occurred, observe)
            if len(chosen) <= len(proposed):
                cache.forget(len(proposed) + 1 - len(chosen))
            if proposed:  # more where all were right, few where none was: a pass of three tokens costs hardly more
                right = len(chosen) - 1
                ambition = min(sampling.lookup, max(2 * right if right == len(proposed) else right, _FEWEST))
            for token in chosen:
                text.add(token)
                produced += 1
                yield torch.tensor([token], device=device)
    finally:
        surplus = cache.length - skipped - (len(text.ids) - 1)
        if surplus > 0:  # closed between tokens of one pass
            cache.forget(surplus)


def _chosen(
    logits: Tensor,
    proposed: list[int],
    sampling: Sampling,
    numbers: UniformNumbers,
    occurred: Tensor | None,
    observe: Observe | None,
) -> list[int]:
    """The tokens that the model chooses from logits (1 + n, V) up to the first that is not the one of n proposed, which
    is among them."""
    found: list[int] = []
    best = logits.argmax(-1).tolist() if sampling.temperature == 0 and occurred is None and observe is None else None
    for place in range(len(logits)):
        if best is not None:
            found.append(best[place])
        else:
            row = filter_logits(logits[place : place + 1], sampling, occurred)
            ids = choose(row, sampling, numbers)
            if observe is not None:
                observe([0], row, ids)
            if occurred is not None:
                occurred.scatter_(1, ids[:, None], True)
            found.append(int(ids))
        if place == len(proposed) or found[-1] != proposed[place]:
            break
    return found
