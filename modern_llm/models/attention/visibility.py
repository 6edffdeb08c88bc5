"""The rule of the decoder: which token sees which.

A token at position i sees the token at j of its own document where j <= i and (i - j < window or j < kept_tokens);
padding is seen by padding alone; a branch sees its document's trunk and itself; learned sinks are seen by all. The rule
is written once, in comparisons alone, and read in two ways: of tokens, it says which pairs are visible; of spans of
tokens, in which blocks some pair may be, and in which all are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from modern_llm.models.attention.layers import AttentionView


class Tokens(NamedTuple):
    """Tokens as the rule sees them, (1 or B, tokens) each where no other shape is given."""

    arrival: Tensor  # (tokens,) order of arrival, padding included
    positions: Tensor
    documents: Tensor | None = None  # -1 at padding; None: one document, all real
    branches: Tensor | None = None  # 0: of the trunk; None: there are none
    first_seen: Tensor | None = None  # of queries: where their window begins; None: there is no window
    kept: Tensor | None = None  # of keys: True where they stay visible behind the window
    learned: Tensor | None = None  # of keys, (tokens,) True at learned sinks

    def map(self, fn: Callable[[Tensor], Any]) -> Tokens:
        """The same with every fact that there is changed."""
        return Tokens(*[fact if fact is None else fn(fact) for fact in self])  # type: ignore[arg-type]


def as_queries(view: AttentionView, tokens: Tokens) -> Tokens:
    """Tokens that see as a view lets them."""
    if view.window is None:
        return tokens
    return tokens._replace(first_seen=tokens.positions - (view.window - 1))


def as_keys(view: AttentionView, tokens: Tokens) -> Tokens:
    """Tokens that are seen as a view lets them."""
    if view.window is None or not view.kept_tokens:
        return tokens
    return tokens._replace(kept=tokens.positions < view.kept_tokens)


def sees(query: Tokens, key: Tokens) -> Any:
    """Whether a query sees a key: a truth value for tensors that broadcast against one another, a `Verdict` for
    `Span`s."""
    # Padding shares one position, so the order of arrival decides as well.
    seen = (key.positions <= query.positions) & (key.arrival <= query.arrival)
    if query.first_seen is not None:
        inside = query.first_seen <= key.positions
        seen = seen & (inside if key.kept is None else inside | key.kept)
    if query.documents is not None and key.documents is not None:
        seen = seen & (query.documents == key.documents)
    if query.branches is not None and key.branches is not None:
        seen = seen & sees_branch(query.branches, key.branches)
    return seen if key.learned is None else seen | key.learned


def sees_branch(query: Any, key: Any) -> Any:
    """Whether a token of one branch sees one of another: the trunk, 0, and itself."""
    return (key == 0) | (query == key)


def visible_pairs(query: Tokens, key: Tokens) -> Tensor:
    """(1 or B, T, n) the rule for every pair of T queries and n keys."""
    return sees(query.map(lambda fact: fact[..., :, None]), key.map(lambda fact: fact[..., None, :]))


# -- spans of tokens -------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What is known of a comparison of every member of one span with every member of another."""

    some: Tensor  # False: it holds for no pair
    every: Tensor  # True: it holds for all pairs

    def __and__(self, other: Verdict) -> Verdict:
        return Verdict(self.some & other.some, self.every & other.every)

    def __or__(self, other: Verdict) -> Verdict:
        return Verdict(self.some | other.some, self.every | other.every)


class Span:
    """Numbers between two bounds, of which both occur.

    Args:
        low, high: the bounds.
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high

    def __le__(self, other: Span) -> Verdict:
        return Verdict(self.low <= other.high, self.high <= other.low)

    def __eq__(self, other: Span | int) -> Verdict:  # type: ignore[override]
        low, high = (other, other) if isinstance(other, int) else (other.low, other.high)
        return Verdict((self.low <= high) & (self.high >= low), (self.low == high) & (self.high == low))

    __hash__ = None  # type: ignore[assignment]


def visible_blocks(query: Tokens, key: Tokens, size: int) -> Verdict:
    """(1 or B, T / size, n / size) the rule for all pairs of blocks of `size` queries and keys, from T + n numbers:
    whether some pair of a block may be visible, and whether every pair certainly is."""

    def bounded(fact: Tensor, place: tuple[Any, ...]) -> Span | Verdict:
        blocks = fact.unflatten(-1, (-1, size))
        if fact.dtype == torch.bool:
            return Verdict(blocks.any(-1)[place], blocks.all(-1)[place])
        return Span(blocks.amin(-1)[place], blocks.amax(-1)[place])

    verdict: Verdict = sees(
        query.map(lambda fact: bounded(fact, (..., slice(None), None))),
        key.map(lambda fact: bounded(fact, (..., None, slice(None)))),
    )
    return verdict
