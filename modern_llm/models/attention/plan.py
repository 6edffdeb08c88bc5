"""Who sees whom, and where everybody stands: decided once per forward pass and shared by all layers that see alike.

The rule of the decoder is that of `visibility.py`. Positions count real tokens from the document's start. The sinks lie
at a rotary distance of at most window + kept_tokens - 1, counted inside the window (Xiao et al. 2023, arXiv 2309.17453,
section 3.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.attention.branching import Branches
from modern_llm.models.attention.fixed_cache import FixedPart
from modern_llm.models.attention.flexible import VisibleBlocks
from modern_llm.models.attention.kv_cache import KVCache
from modern_llm.models.attention.layers import AttentionView
from modern_llm.models.attention.rotary import NoRotation, Rotary, Rotation
from modern_llm.models.attention.trunks import Trunks
from modern_llm.models.attention.visibility import Tokens, as_keys, as_queries, sees_branch, visible_pairs
from modern_llm.models.kernels import additive_mask


class SinkView(NamedTuple):
    """How the new tokens see the sinks, where that is not at their own position."""

    rotation: Rotation | None  # of the T new tokens as the sinks see them
    columns: Tensor  # (1 or B, S + n) True at the sinks among the keys


@dataclass
class AttentionPlan:
    """What the layers of one forward pass that see alike share.

    Attributes:
        rotation: of the T new tokens.
        causal: new token i sees the new tokens 0 to i, and there is no mask.
        visible: (1 or B, T, n) True where a new token sees a key, cached ones first; None: all that `causal` leaves.
        mask: (1 or B, 1, T, S + n) the same as numbers to be added to the scores, for S learned rows that all see.
        sink_turn: moves the sinks to their distance inside the window, in decoding; None: they stay.
        sink_view: in a longer pass, the same by way of the queries.
        real, positions: (B, T) of the new tokens where a text is padded, for the cache.
        branches: computes attention instead of a mask, where branches stand behind their trunks.
        blocks: likewise, by FlexAttention; there is no `visible` then.
        trunks: compute attention to what a cache holds once for several texts; mask is for the other keys then.
    """

    rotation: Rotation | None
    causal: bool
    visible: Tensor | None = None
    mask: Tensor | None = None
    sink_turn: Rotation | None = None
    sink_view: SinkView | None = None
    real: Tensor | None = None
    positions: Tensor | None = None
    branches: Branches | None = None
    blocks: VisibleBlocks | None = None
    trunks: Trunks | None = None


def plan_attention(
    view: AttentionView,
    rotary: Rotary,
    tokens: int,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    cache: KVCache | FixedPart | None = None,
    branch_ids: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    branch_lengths: Tensor | None = None,
    capped: bool = False,
    flexible: bool = False,
) -> AttentionPlan:
    """The plan of the layers of a decoder that see alike.

    Args:
        view: what they see.
        rotary: of the model.
        tokens: T new tokens.
        attention_mask: (B, T) False at padding, or None.
        document_ids: (B, T) numbers of the packed documents, or None. Not with a cache.
        cache: what the new tokens continue, or None.
        branch_ids: (B, T) 0 for the trunk, else the number of a branch: it continues its document's trunk, which
            stands in front of it, and sees no other branch. Not with a cache.
        dtype: that attention is computed in.
        branch_lengths: (B, 1 + A) tokens of a row's trunk and of each branch, which stand one behind the other, on the
            host; None: not known, or not like that.
        capped: scores have a soft cap, which no kernel but FlexAttention's has.
        flexible: FlexAttention computes what has a mask or a cap. Not with a cache.

    Raises:
        ValueError: documents or branches with a cache; padding in a cache that evicts, where it stands behind a
            text's first token or the sinks are tokens of the text.
    """
    turning = rotary.of(view)
    if isinstance(cache, FixedPart):
        mask, rotation, sink_turn = cache.plan(turning, dtype)
        return AttentionPlan(rotation, causal=False, mask=mask, sink_turn=sink_turn)
    past = cache.length if cache is not None else 0
    padded = attention_mask is not None or (cache is not None and cache.real is not None)
    packed = document_ids is not None or branch_ids is not None
    if cache is not None and packed:
        raise ValueError("document_ids cannot be combined with a cache. Prefill the documents one by one.")
    if not padded and not packed and past == 0 and tokens <= view.reach(tokens) and not (capped and flexible):
        if tokens > 1:  # a branch: a compiler that takes all lengths would hand the comparison on as a symbol
            return AttentionPlan(turning.span(0, tokens), causal=True)
        return AttentionPlan(turning.span(0, tokens), causal=False)
    if cache is not None and padded:
        _check_padding(cache, attention_mask)
    if cache is not None and past and tokens == 1:
        return _plan_decoding(view, turning, cache, attention_mask, dtype)

    if branch_lengths is not None and tokens <= view.reach(tokens) and not view.learned_rows and not capped:
        branches = Branches.of(branch_lengths, tokens, rotary.cos.device, dtype)
        if branches is not None:
            places = branch_places(branch_lengths, tokens).to(rotary.cos.device, non_blocking=True)
            return AttentionPlan(turning.at(places, tokens), causal=False, branches=branches)

    marks = (attention_mask, document_ids, branch_ids, branch_lengths)
    new = keys = new_tokens(rotary.cos.device, tokens, past, cache, *marks)
    if cache is not None and past:
        keys = _with_held(cache, new)
    longest = past + tokens
    plan = AttentionPlan(turning.at(new.positions, longest), causal=False)
    if flexible and cache is None:
        plan.blocks = VisibleBlocks.of(as_queries(view, new), as_keys(view, keys), view.learned_rows)
    else:
        plan.visible = visible_pairs(as_queries(view, new), as_keys(view, keys))
        plan.mask = _mask(view, plan.visible, dtype)
    if padded and new.documents is not None:
        plan.real, plan.positions = new.documents >= 0, new.positions
    if view.sinks_move(longest):
        last_place = view.reach(longest) - 1
        columns = F.pad(keys.positions < view.kept_tokens, (view.learned_rows, 0), value=True)
        plan.sink_view = SinkView(turning.at(new.positions.clamp(max=last_place), longest), columns)
    return plan


def plan_encoding(
    rotary: Rotary, tokens: int, attention_mask: Tensor | None = None, dtype: torch.dtype = torch.float32
) -> AttentionPlan:
    """The plan of an encoder: every token sees every real one, in front of it and behind it.

    Positions are places in the row: what attention computes depends on distances alone, so padding on either side
    changes nothing.

    Args:
        tokens: T.
        attention_mask: (B, T) False at padding, or None.
        dtype: that attention is computed in.
    """
    plan = AttentionPlan(rotary.span(0, tokens), causal=False)
    if attention_mask is not None:
        plan.visible = attention_mask.bool()[:, None]  # (B, 1, T)
        plan.mask = additive_mask(plan.visible[:, None], dtype)
    return plan


# -- one token on a cache --------------------------------------------------------------------------------------------


def _plan_decoding(
    view: AttentionView, rotary: Rotary | NoRotation, cache: KVCache, attention_mask: Tensor | None, dtype: torch.dtype
) -> AttentionPlan:
    """One new token sees everything that is held, which is what the window leaves, but for padding."""
    past, last_place = cache.length, view.reach(cache.length + 1) - 1
    moves = view.sinks_move(past + 1)
    if attention_mask is None and cache.real is None:
        turn = rotary.span(past - last_place, past - last_place + 1) if moves else None
        turn = rotary.without_factor(turn)
        return AttentionPlan(rotary.span(past, past + 1), causal=False, sink_turn=turn, trunks=cache.trunks)
    real, positions = _padded_positions(cache, attention_mask, 1)
    visible = cache.real_with_next(real) == real  # (B, n): padding is seen by padding alone
    turn = rotary.at((positions - last_place).clamp(min=0), past + 1) if moves else None
    return AttentionPlan(
        rotary.at(positions, past + 1),
        causal=False,
        visible=visible[:, None],
        mask=_mask(view, visible[:, None], dtype),
        sink_turn=rotary.without_factor(turn),
        real=real,
        positions=positions,
        trunks=cache.trunks,
    )


# -- several tokens --------------------------------------------------------------------------------------------------


def new_tokens(
    device: torch.device,
    tokens: int,
    past: int,
    cache: KVCache | None,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    branch_ids: Tensor | None,
    branch_lengths: Tensor | None = None,
) -> Tokens:
    """The T new tokens: packed documents, padded texts, or plain ones. Arguments as in `plan_attention`."""
    index = torch.arange(past, past + tokens, device=device)
    if branch_ids is not None and document_ids is None:
        document_ids = torch.zeros_like(branch_ids)
    if document_ids is not None:
        real = torch.ones_like(document_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        if branch_ids is None:
            positions = _document_positions(document_ids, real)
        elif branch_lengths is not None:
            positions = branch_places(branch_lengths, tokens).to(device, non_blocking=True)
        else:
            positions = branch_positions(document_ids, branch_ids, real)
        return Tokens(index, positions, document_ids.where(real, torch.full_like(document_ids, -1)), branch_ids)
    if attention_mask is not None or (cache is not None and cache.real is not None):
        real, positions = _padded_positions(cache, attention_mask, tokens)
        return Tokens(index, positions, torch.where(real, 0, -1))
    return Tokens(index, index[None])


def _with_held(cache: KVCache, new: Tokens) -> Tokens:
    """The tokens that a cache holds, oldest first, and the new ones."""
    held = torch.tensor(cache.held(), device=new.arrival.device)
    index = torch.cat([held, new.arrival])
    if new.documents is None:
        return Tokens(index, index[None])
    rows = len(new.positions)
    positions, documents = held.expand(rows, -1), new.documents.new_zeros(rows, len(held))
    if cache.real is not None and cache.positions is not None:
        slots = cache.held_slots()
        positions, documents = cache.positions[:, slots], torch.where(cache.real[:, slots], 0, -1)
    return Tokens(index, torch.cat([positions, new.positions], 1), torch.cat([documents, new.documents], 1))


def _mask(view: AttentionView, visible: Tensor, dtype: torch.dtype) -> Tensor:
    """(1 or B, 1, T, S + n) of visible (1 or B, T, n)."""
    return additive_mask(F.pad(visible, (view.learned_rows, 0), value=True)[:, None], dtype)


# -- padding ---------------------------------------------------------------------------------------------------------


def _padded_positions(cache: KVCache | None, attention_mask: Tensor | None, tokens: int) -> tuple[Tensor, Tensor]:
    """(B, T) of the new tokens, where any text is padded: which are real, and their positions."""
    if attention_mask is not None:
        real = attention_mask.bool()
    else:
        assert cache is not None
        assert cache.real is not None
        real = cache.real.new_ones(len(cache.real), tokens)
    before: Tensor | int = 0
    if cache is not None:
        before = cache.length if cache.real_tokens is None else cache.real_tokens
    return real, (before + real.long().cumsum(1) - 1).clamp(min=0)


def _check_padding(cache: KVCache, attention_mask: Tensor | None) -> None:
    """Refuse padding that would take the place of tokens that are still seen."""
    if cache.ring and cache.kept:
        raise ValueError(
            "attention_mask: streaming sinks keep the first tokens of every text, and padding stands in their "
            "place once a text outgrows the window. Give prompts of equal length, or one at a time."
        )
    if not cache.ring or attention_mask is None:
        return
    real = attention_mask.bool()
    before = cache.length if cache.real_tokens is None else cache.real_tokens
    if bool((before + real.long().cumsum(1) > 0)[~real].any()):
        raise ValueError(
            "attention_mask: padding behind the first token of a text would push tokens out of the window that "
            "are still seen. Pad on the left, and give later turns of unequal length one at a time."
        )


# -- documents and branches ------------------------------------------------------------------------------------------


def _document_positions(document_ids: Tensor, real: Tensor) -> Tensor:
    """(B, T) number of real tokens before each one in its document."""
    counted = real.long().cumsum(1)
    starts = torch.ones_like(real)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    before = (counted - real.long()).where(starts, torch.zeros_like(counted)).cummax(dim=1).values
    return (counted - 1 - before).clamp(min=0)


def branches_seen(branch_ids: Tensor) -> Tensor:
    """(B, T, T) whether a token's branch sees another's."""
    found: Tensor = sees_branch(branch_ids[:, :, None], branch_ids[:, None])
    return found


def branch_places(branch_lengths: Tensor, tokens: int) -> Tensor:
    """(B, T) position of every token of rows in which a trunk stands in front of its branches, on the host; 0 at
    padding. branch_lengths as in `plan_attention`."""
    ends = branch_lengths.cumsum(1)  # (B, 1 + A)
    index = torch.arange(tokens)
    of = (index >= ends[:, :, None]).sum(1)  # (B, T) 0: trunk; 1 + A: padding
    starts = torch.cat([torch.zeros_like(ends[:, :1]), ends], 1).gather(1, of)
    inside = index - starts + torch.where(of > 0, branch_lengths[:, :1], 0)
    return inside.masked_fill(of == branch_lengths.shape[1], 0)


def branch_positions(document_ids: Tensor, branch_ids: Tensor, real: Tensor) -> Tensor:
    """(B, T) position of every token when the branches of a document (B, T) all continue its trunk: how many real
    tokens it sees besides itself."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    seen = (document_ids[:, None] == document_ids[:, :, None]) & branches_seen(branch_ids)
    seen = seen & (index <= index[:, None]) & real[:, None]
    return (seen.sum(-1) - real.long()).clamp(min=0)
