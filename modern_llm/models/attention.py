"""Multi-head attention with rotary positions, grouped key/value heads and attention sinks.

The fused kernel of `scaled_dot_product_attention` is kept in every case that training meets: sinks become extra
key/value rows, never a second softmax.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.kv_cache import KVCache
from modern_llm.models.linear import Linear
from modern_llm.models.norm import RMSNorm
from modern_llm.models.rotary import Rotary, Rotation, rotate
from modern_llm.models.sinks import LearnableSinks, SinkLogits

# Fused kernels want head widths in multiples of 8.
_WIDTH_MULTIPLE = 8


@dataclass
class AttentionPlan:
    """What every layer of one forward pass shares: who sees whom, and where everybody stands.

    Attributes:
        rotation: of the T new tokens.
        visible: (1 or B, T, n) True where a new token sees a key, cached keys first. None: plain causal without
            cached keys, everything held with them.
        cached_slots: (m,) cache slots of the keys in front of the new ones, where they are to be read in order.
        decoding: one new token that sees everything held.
        both_ways: every token sees all others, later ones too, where `visible` says nothing else.
        sink_turn: in decoding, what moves the sinks to their distance inside the window; None: they stay.
        sink_rotation: of the T new tokens as the sinks see them, where that is not their own position.
        sink_columns: (1 or B, n) True at the keys that are kept first tokens; with `sink_rotation` only.
        real, positions: (B, T) of the new tokens where a text is padded, for the cache.
    """

    rotation: Rotation | None
    visible: Tensor | None = None
    cached_slots: Tensor | None = None
    decoding: bool = False
    both_ways: bool = False
    sink_turn: Rotation | None = None
    sink_rotation: Rotation | None = None
    sink_columns: Tensor | None = None
    real: Tensor | None = None
    positions: Tensor | None = None


def plan_attention(
    config: ModernLLMConfig,
    rotary: Rotary,
    tokens: int,
    attention_mask: Tensor | None = None,
    document_ids: Tensor | None = None,
    cache: KVCache | None = None,
    branch_ids: Tensor | None = None,
) -> AttentionPlan:
    """Decide masks and rotations once for all layers.

    The rule: a token at position i sees the token at j of its own document where j <= i and (i - j < window or
    j < kept_tokens); padding is seen by padding alone. Positions count real tokens from the document's start. The
    sinks lie at a rotary distance of at most window + kept_tokens - 1, counted inside the window (Xiao et al.
    2023, arXiv 2309.17453, section 3.2).

    Args:
        tokens: T new tokens.
        attention_mask: (B, T) False at padding, or None.
        document_ids: (B, T) numbers of the packed documents, or None. Not with a cache.
        cache: what the new tokens continue, or None.
        branch_ids: (B, T) 0 for the trunk, else the number of a branch: it continues its document's trunk, which
            stands in front of it, and sees no other branch. Not with a cache.

    Raises:
        ValueError: documents or branches with a cache; padding in a cache that evicts, where it stands behind a
            text's first token or the sinks are tokens of the text.
    """
    window, kept = config.attention_window, config.kept_tokens
    past = cache.length if cache is not None else 0
    longest = past + tokens
    reach = longest if window is None else window + kept
    has_rotated_sinks = config.use_attention_sinks and not isinstance(config.sinks, SinkLogits)
    bounded = has_rotated_sinks and longest > reach
    padded = attention_mask is not None or (cache is not None and cache.real is not None)

    if branch_ids is not None and document_ids is None:
        document_ids = torch.zeros_like(branch_ids)
    if not padded and document_ids is None:
        if past == 0 and longest <= reach:
            return AttentionPlan(rotary.span(0, tokens))
        if past and tokens == 1:
            turn = rotary.turn(past - (reach - 1)) if bounded else None
            return AttentionPlan(rotary.span(past, longest), decoding=True, sink_turn=turn)

    device = rotary.cos.device
    index = torch.arange(past, longest, device=device)  # order of arrival, padding included
    slots = cache.held_slots() if cache is not None and past else None
    key_index = index
    if cache is not None and slots is not None:
        key_index = torch.cat([torch.tensor(cache.held(), device=device), index])
    real: Tensor | None = None
    if document_ids is not None:
        if cache is not None:
            raise ValueError("document_ids cannot be combined with a cache. Prefill the documents one by one.")
        real = torch.ones_like(document_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        positions = _document_positions(document_ids, real)
        if branch_ids is not None:
            positions = branch_positions(document_ids, branch_ids, real)
        key_positions, documents = positions, document_ids.where(real, torch.full_like(document_ids, -1))
    elif padded:
        if cache is not None and cache.ring and kept:
            raise ValueError(
                "attention_mask: streaming sinks keep the first tokens of every text, and padding stands in their "
                "place once a text outgrows the window. Give prompts of equal length, or one at a time."
            )
        rows = attention_mask if attention_mask is not None else cache.real  # type: ignore[union-attr]
        assert rows is not None
        new = rows.bool() if attention_mask is not None else rows.new_ones(len(rows), tokens)
        before: Tensor | int = past if cache is None or cache.real_tokens is None else cache.real_tokens
        counted = before + new.long().cumsum(1)
        if cache is not None and cache.ring and attention_mask is not None and bool((counted > 0)[~new].any()):
            raise ValueError(
                "attention_mask: padding behind the first token of a text would push tokens out of the window that "
                "are still seen. Pad on the left, and give later turns of unequal length one at a time."
            )
        positions = (counted - 1).clamp(min=0)
        key_positions, seen = positions, new
        if cache is not None and slots is not None:
            old_positions = key_index[: len(slots)].expand(len(new), -1)
            old_real = new.new_ones(len(new), len(slots))
            if cache.real is not None and cache.positions is not None:
                old_positions, old_real = cache.positions[:, slots], cache.real[:, slots]
            key_positions, seen = torch.cat([old_positions, positions], 1), torch.cat([old_real, new], 1)
        real, documents = new, torch.where(seen, 0, -1)
    else:
        positions, key_positions, documents = index[None], key_index[None], None
    distance = positions[:, :, None] - key_positions[:, None]  # (1 or B, T, n)
    # Padding shares one position, so the order of arrival decides as well.
    visible = (distance >= 0) & (key_index <= index[:, None])
    if window is not None:
        visible &= (distance < window) | (key_positions[:, None] < kept)
    if documents is not None:
        visible = visible & (documents[:, -tokens:, None] == documents[:, None])
    if branch_ids is not None:
        visible = visible & sees_branch(branch_ids)
    plan = AttentionPlan(rotary.at(positions, longest), visible, slots, real=real, positions=positions)
    if bounded:
        plan.sink_rotation = rotary.at(positions.clamp(max=reach - 1), longest)
        plan.sink_columns = key_positions < kept
    return plan


def plan_encoding(rotary: Rotary, tokens: int, attention_mask: Tensor | None = None) -> AttentionPlan:
    """The plan of an encoder: every token sees every real one, in front of it and behind it.

    Positions are places in the row: what attention computes depends on distances alone, so padding on either side
    changes nothing.

    Args:
        tokens: T.
        attention_mask: (B, T) False at padding, or None.
    """
    visible = None if attention_mask is None else attention_mask.bool()[:, None]  # (B, 1, T)
    return AttentionPlan(rotary.span(0, tokens), visible, both_ways=True)


def _document_positions(document_ids: Tensor, real: Tensor) -> Tensor:
    """(B, T) number of real tokens before each one in its document."""
    counted = real.long().cumsum(1)
    starts = torch.ones_like(real)
    starts[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    before = (counted - real.long()).where(starts, torch.zeros_like(counted)).cummax(dim=1).values
    return (counted - 1 - before).clamp(min=0)


def sees_branch(branch_ids: Tensor) -> Tensor:
    """(B, T, T) whether a token's branch sees another's: the trunk, and itself."""
    return (branch_ids[:, None] == 0) | (branch_ids[:, :, None] == branch_ids[:, None])


def branch_positions(document_ids: Tensor, branch_ids: Tensor, real: Tensor) -> Tensor:
    """(B, T) position of every token when the branches of a document (B, T) all continue its trunk: how many real
    tokens it sees besides itself."""
    index = torch.arange(document_ids.shape[1], device=document_ids.device)
    seen = (document_ids[:, None] == document_ids[:, :, None]) & sees_branch(branch_ids)
    seen = seen & (index <= index[:, None]) & real[:, None]
    return (seen.sum(-1) - real.long()).clamp(min=0)


class Attention(nn.Module):
    """Softmax attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) over grouped key/value heads.

    Args:
        config: shapes, sinks, norms and biases.
    """

    def __init__(self, config: ModernLLMConfig) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_size
        width = (config.n_heads + 2 * config.n_kv_heads) * config.head_size
        self.qkv_proj = Linear(config.d_model, width, bias=config.qkv_bias)
        self.o_proj = Linear(config.n_heads * config.head_size, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_size, config.norm_eps) if config.qk_norm else None
        sinks, heads = config.active_sinks, (config.n_kv_heads, config.head_size)
        self.sink_keys = self.sink_values = self.sink_logits = None
        if isinstance(sinks, LearnableSinks):
            self.sink_keys = nn.Parameter(torch.empty(sinks.num_sinks, *heads))
            self.sink_values = nn.Parameter(torch.empty(sinks.num_sinks, *heads))
        elif isinstance(sinks, SinkLogits):
            self.sink_logits = nn.Parameter(torch.empty(config.n_heads))

    def forward(self, x: Tensor, plan: AttentionPlan, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        """x: (B, T, d_model). Returns the same shape. A cache gets the new keys and values of `layer`."""
        B, T, _ = x.shape
        q, k, v, q_at_sinks = self._project(x, plan)
        if cache is not None:
            if plan.cached_slots is not None:
                old_k, old_v = cache.read_all(layer, plan.cached_slots)
                cache.write(layer, k, v)
                k, v = torch.cat([old_k, k.to(old_k.dtype)], dim=1), torch.cat([old_v, v.to(old_v.dtype)], dim=1)
            else:
                cache.write(layer, k, v)
                if plan.decoding:
                    k, v = cache.view(layer, plan.sink_turn)
        out = self._attend(q, k, v, q_at_sinks, plan)  # (B, T, H, D)
        return self.o_proj(out.reshape(B, T, -1))

    def _project(self, x: Tensor, plan: AttentionPlan) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Rotated queries (B, T, H, D) and keys (B, T, Hkv, D), values, and queries as the sinks see them."""
        B, T, _ = x.shape
        qkv = self.qkv_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H + 2 Hkv, D)
        qk, v = qkv.split([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([self.n_heads, self.n_kv_heads], dim=2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
        elif torch.is_grad_enabled():
            v = v.contiguous()  # lets go of the projection's output, of which nothing else is kept
        q, k = rotate(qk, plan.rotation).split([self.n_heads, self.n_kv_heads], dim=2)
        q_at_sinks = rotate(qk[:, :, : self.n_heads], plan.sink_rotation) if plan.sink_rotation is not None else None
        return q, k, v, q_at_sinks

    @torch.no_grad()
    def weights(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """(B, H, T, S + T) how much each token of x (B, T, d_model) attends to the S learned sinks and to each token.

        For looking at: `forward` never holds them. The rows sum to 1. Without a cache.
        """
        T, D = x.shape[1], self.head_dim
        q, k, _, n_sinks = self._beside_sinks(*self._project(x, plan), plan)
        visible = plan.visible
        if visible is None:
            visible = torch.ones(1, T, T, dtype=torch.bool, device=x.device)
            visible = visible if plan.both_ways else visible.tril()
        visible = F.pad(visible, (n_sinks, 0), value=True)[:, None]  # (1 or B, 1, T, S + T)
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2)
        scores = torch.einsum("bthd,bnhd->bhtn", q, k) * D**-0.5
        return scores.float().masked_fill(~visible, -torch.inf).softmax(dim=-1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_at_sinks: Tensor | None, plan: AttentionPlan) -> Tensor:
        """q: (B, T, H, D); k, v: (B, n, Hkv, D); q_at_sinks: q as the sinks see it. Returns (B, T, H, D)."""
        _, T, H, D = q.shape
        q, k, v, n_sinks = self._beside_sinks(q, k, v, q_at_sinks, plan)
        mask, causal = plan.visible, plan.visible is None and not (plan.decoding or plan.both_ways)
        if mask is not None:
            mask = F.pad(mask, (n_sinks, 0), value=True)[:, None]  # (1 or B, 1, T, S + n)
        elif causal and n_sinks:
            # The sinks get query rows too, whose outputs are dropped: the scores stay square, and the fused causal
            # kernel applies.
            q = F.pad(q, (0, 0, 0, 0, n_sinks, 0))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=causal and q.shape[1] > 1,
            scale=D**-0.5,
            enable_gqa=self.n_kv_heads != H,
        ).transpose(1, 2)
        return out[:, -T:, :, :D]

    def _beside_sinks(
        self, q: Tensor, k: Tensor, v: Tensor, q_at_sinks: Tensor | None, plan: AttentionPlan
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        """The same with the learned sinks in front of keys and values, and how many they are."""
        B, _, _, D = q.shape
        n_sinks, sink_columns = 0, plan.sink_columns
        if self.sink_keys is not None and self.sink_values is not None:
            n_sinks = len(self.sink_keys)
            sink_k = self.sink_keys[None]  # (1, S, Hkv, D), at position 0
            if plan.sink_turn is not None:
                sink_k = rotate(sink_k, plan.sink_turn)
            k = torch.cat([sink_k.to(k.dtype).expand(B, -1, -1, -1), k], dim=1)
            v = torch.cat([self.sink_values.to(v.dtype).expand(B, -1, -1, -1), v], dim=1)
            if sink_columns is not None:
                sink_columns = F.pad(sink_columns, (n_sinks, 0), value=True)
        elif self.sink_logits is not None:
            n_sinks = 1
            q, k, v = self._with_logit_row(q, k, v)
        if q_at_sinks is not None and sink_columns is not None:
            # The sinks see the query at another angle than the text does: both angles side by side, zeros across.
            at_sinks = sink_columns[:, :, None, None]
            q = torch.cat([q, q_at_sinks], dim=-1)
            k = torch.cat([k.masked_fill(at_sinks, 0), k.masked_fill(~at_sinks, 0)], dim=-1)
            v = F.pad(v, (0, D))
        return q, k, v, n_sinks

    def _with_logit_row(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put in front a key whose product with a query of head h is the sink logit of h, and the value 0.

        Each head reads a coordinate of its own among those added, because the heads of a group share their keys.
        """
        assert self.sink_logits is not None
        B, T, H, D = q.shape
        group = H // self.n_kv_heads
        extra = -(-group // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        own = torch.eye(group, extra, dtype=q.dtype, device=q.device).repeat(self.n_kv_heads, 1)  # (H, extra)
        logits = self.sink_logits.view(self.n_kv_heads, group) * D**0.5
        row = F.pad(logits, (D, extra - group)).to(k.dtype)  # (Hkv, D + extra)
        q = torch.cat([q, own.expand(B, T, H, extra)], dim=-1)
        k = torch.cat([row.expand(B, 1, -1, -1), F.pad(k, (0, extra))], dim=1)
        return q, k, F.pad(v, (0, extra, 0, 0, 1, 0))
