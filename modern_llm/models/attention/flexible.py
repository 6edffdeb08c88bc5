"""Attention with masks by PyTorch's FlexAttention (Dong et al. 2024, arXiv 2412.05496): the compiler writes a kernel
that computes the rule of visibility where it needs it and leaves out the blocks in which no pair is visible."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.overrides import handle_torch_function

from modern_llm.models.attention.capped import soft_cap
from modern_llm.models.attention.visibility import Tokens, sees, visible_blocks, visible_pairs
from modern_llm.models.kernels import compute_dtype, has_content

BLOCK = 128  # queries and keys of a block: what the kernels of FlexAttention are made for
SMALLEST_HEAD = 16  # columns, the least that its kernels take
_NEVER = 2**31 - 1  # order of arrival of padding behind the last key


@dataclass
class VisibleBlocks:
    """Who sees whom in one forward pass, without a number for each pair of tokens.

    Queries and keys are padded to whole blocks: with rows that do not fill the last one, gradients through `score_mod`
    and a block mask were seen to become NaN (pytorch#153799). A query behind the last is one more of the last; a key
    behind the last is seen by none.

    Attributes:
        query, key: the tokens as the rule sees them.
        blocks: which blocks to visit, (1 or B, 1, T / BLOCK, n / BLOCK), and the rule.
    """

    query: Tokens
    key: Tokens
    blocks: BlockMask

    @classmethod
    def of(cls, query: Tokens, key: Tokens, learned_rows: int) -> VisibleBlocks:
        """Those of T queries and of S learned rows in front of n keys.

        Args:
            query, key: T and n tokens.
            learned_rows: S.
        """
        tokens, keys = query.arrival.shape[-1], key.arrival.shape[-1] + learned_rows
        # Two at least, and as many more for the sinks at every length: compiled code is bound to sizes of 1 and to
        # sizes that are the same.
        blocks = max(-(-tokens // BLOCK), 2)
        key_blocks = blocks - (-learned_rows // BLOCK)
        padded_query = _in_32_bits(query).map(lambda fact: _filled(fact, blocks * BLOCK))
        padded_key = _in_32_bits(key).map(lambda fact: _filled(F.pad(fact, (learned_rows, 0)), key_blocks * BLOCK))
        index = torch.arange(key_blocks * BLOCK, device=key.arrival.device)
        padded_key = padded_key._replace(arrival=padded_key.arrival.masked_fill(index >= keys, _NEVER))
        if learned_rows:
            padded_key = padded_key._replace(learned=index < learned_rows)
        some, every = (found[:, None] for found in visible_blocks(padded_query, padded_key, BLOCK))  # (1 or B, 1, …)
        partial = some & ~every
        (partial_keys, partial_queries), (full_keys, full_queries) = (
            (_ordered(found), _ordered(found.mT)) for found in (partial, every)
        )
        of_query, of_key = (
            facts.map(lambda fact: fact[0] if fact.dim() == 2 and len(fact) == 1 else fact)
            for facts in (padded_query, padded_key)
        )

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            found: Tensor = sees(
                of_query.map(lambda fact: fact[q] if fact.dim() == 1 else fact[b, q]),
                of_key.map(lambda fact: fact[k] if fact.dim() == 1 else fact[b, k]),
            )
            return found

        mask = BlockMask(
            seq_lengths=(blocks * BLOCK, key_blocks * BLOCK),
            kv_num_blocks=partial_keys[0],
            kv_indices=partial_keys[1],
            full_kv_num_blocks=full_keys[0],
            full_kv_indices=full_keys[1],
            q_num_blocks=partial_queries[0],
            q_indices=partial_queries[1],
            full_q_num_blocks=full_queries[0],
            full_q_indices=full_queries[1],
            BLOCK_SIZE=(BLOCK, BLOCK),
            mask_mod=visible,
        )
        return cls(query, key, mask)

    def pairs(self) -> Tensor:
        """(1 or B, T, n) what is visible, of which attention has no need."""
        return visible_pairs(self.query, self.key)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float | None = None) -> Tensor:
        """softmax(scale q k^T) v, or softmax(c tanh(scale q k^T / c)) v, over what is visible.

        Args:
            q: (B, T, H, D).
            k, v: (B, S + n, Hkv, D), Hkv a divisor of H.
            cap: c (Gemma 2, arXiv 2408.00118, section 2); None: none.

        Returns:
            (B, T, H, D).
        """
        tokens, dtype = q.shape[1], compute_dtype(q)
        wanted = self.blocks.seq_lengths
        q = F.pad(q.to(dtype), (0, 0, 0, 0, 0, wanted[0] - tokens)).transpose(1, 2)
        k, v = (F.pad(t.to(dtype), (0, 0, 0, 0, 0, wanted[1] - t.shape[1])).transpose(1, 2) for t in (k, v))
        return flexible_attention(q, k, v, self.blocks, scale, cap).transpose(1, 2)[:, :tokens]


def flexible_attention(q: Tensor, k: Tensor, v: Tensor, blocks: BlockMask, scale: float, cap: float | None) -> Tensor:
    """`flex_attention` of q (B, H, T, D) with k, v (B, Hkv, n, D), as `VisibleBlocks.attend`."""
    if not has_content():  # the memory plan has its own
        planned: Tensor = handle_torch_function(flexible_attention, (q, k, v), q, k, v, blocks, scale, cap)
        return planned

    def capped(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return soft_cap(score, cap)

    # There is a kernel for few queries as well, for decoding: rows of every length take the one that is trained with.
    return flex_attention(
        q,
        k,
        v,
        None if cap is None else capped,
        blocks,
        scale,
        enable_gqa=q.shape[1] != k.shape[1],
        kernel_options={"FORCE_USE_FLEX_ATTENTION": True},
    )


def _in_32_bits(tokens: Tokens) -> Tokens:
    return tokens.map(lambda fact: fact if fact.dtype == torch.bool else fact.int())


def _filled(fact: Tensor, length: int) -> Tensor:
    """(..., length) of a fact (..., n), with the last one again behind it."""
    index = torch.arange(length, device=fact.device).clamp(max=fact.shape[-1] - 1)
    return fact[..., index]


def _ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """(..., rows) how many are chosen in each row of (..., rows, columns), and (..., rows, columns) those, the others
    behind them."""
    places = chosen.int().argsort(dim=-1, descending=True, stable=True)
    return chosen.sum(-1, dtype=torch.int32), places.to(torch.int32, memory_format=torch.contiguous_format)
