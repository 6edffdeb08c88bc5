"""Multi-head attention with rotary positions, grouped key/value heads and attention sinks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.capped import capped_attention, soft_cap
from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.plan import AttentionPlan
from modern_llm.models.attention.rotary import rotate
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.kernels import fused_attention
from modern_llm.models.linear import Linear
from modern_llm.models.norm import RMSNorm
from modern_llm.models.parts.module import Parts
from modern_llm.models.parts.part import Carried


class Attention(nn.Module):
    """Softmax attention (Vaswani et al. 2017, arXiv 1706.03762, eq. 1) over grouped key/value heads.

    Args:
        config: shapes, sinks, norms, biases and parts.
        layer: of the block that it stands in.
    """

    def __init__(self, config: ModernLLMConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer = layer
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_size
        rows = tuple(n * config.head_size for n in (config.n_heads, config.n_kv_heads, config.n_kv_heads))
        self.qkv_proj = Linear(config.d_model, sum(rows), config.qkv_bias, rows)
        self.o_proj = Linear(config.n_heads * config.head_size, config.d_model, config.o_bias, ends_branch=True)
        self.norms_heads = config.qk_norm_per_head
        q_size, k_size = (config.head_size,) * 2 if self.norms_heads else rows[:2]
        self.q_norm = RMSNorm(q_size, config.norm_eps, config.qk_gain) if config.qk_norm else None
        self.k_norm = RMSNorm(k_size, config.norm_eps, config.qk_gain) if config.qk_norm else None
        self.scale, self.softcap = config.attention_scale * config.head_size**-0.5, config.attention_softcap
        self.attention_dropout = config.attention_dropout
        self.projections = Parts(config.projections, config.sizes, layer)
        self.values = Parts(config.values, config.sizes, layer)
        self.heads = Parts(config.heads, config.sizes, layer)
        sinks = config.active_sinks
        self.sinks = None if sinks is None else sinks.build(self.n_heads, self.n_kv_heads, self.head_dim)
        self._projections, self._values, self._gates = self.projections.each, self.values.each, self.heads.each

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        carried: Carried | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """x: (B, T, d_model). Returns the same shape. A cache gets the new keys and values; `carried` is what the
        blocks hand on, which parts read and add to; without parts it may be missing."""
        B, T, _ = x.shape
        q, k, v = self._heads(x, plan, carried, cache)
        causal = plan.causal
        if causal and k.shape[1] > T:
            # The sinks get query rows too, whose outputs are dropped: the scores stay square, and the fused causal
            # kernel applies.
            q = F.pad(q, (0, 0, 0, 0, k.shape[1] - T, 0))
        dropout = self.attention_dropout if self.training else 0.0
        if plan.trunks is not None:
            out = plan.trunks.attend(self.layer, q, k, v, plan.mask, self.scale)
        elif plan.branches is not None:
            out = plan.branches.attend(q, k, v, self.scale, dropout)
        elif plan.blocks is not None:
            out = plan.blocks.attend(q, k, v, self.scale, self.softcap)
        elif self.softcap is None:
            out = fused_attention(q, k, v, plan.mask, causal, self.scale, dropout)  # (B, T, H, D)
        else:
            out = capped_attention(q, k, v, plan.mask, causal, self.scale, dropout, self.softcap)
        out = out[:, -T:, :, : self.head_dim]
        for part, weights in self._gates:
            out = part.apply(weights, out, x)
        return self.o_proj(out.reshape(B, T, -1))

    def _heads(
        self,
        x: Tensor,
        plan: AttentionPlan,
        carried: Carried | None = None,
        cache: DecoderCache | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, T, H, D) and everything that they attend to, (B, S + n, Hkv, D): learned sinks, what is cached,
        and the new tokens. Their width is that of a head or, where the sinks need more columns, larger."""
        carried = {} if carried is None else carried
        heads, v = self._project(x, carried)
        for part, weights in self._values:
            v = part.mix(weights, v, x, carried, self.layer)
        turned = [rotate(part, plan.rotation) for part in heads]
        q, k = turned if len(turned) == 2 else turned[0].split([self.n_heads, self.n_kv_heads], dim=2)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v, plan.sink_turn)
        if self.sinks is not None:
            q, k, v = self.sinks.join(q, k, v, plan.sink_turn, self.scale)
        if plan.sink_view is not None:
            # The sinks see the query at another angle than the text does: both angles side by side, zeros across.
            at_sinks = plan.sink_view.columns[:, :, None, None]
            q = torch.cat([q, rotate(heads[0][:, :, : self.n_heads], plan.sink_view.rotation)], dim=-1)
            k = torch.cat([k.masked_fill(at_sinks, 0), k.masked_fill(~at_sinks, 0)], dim=-1)
            v = F.pad(v, (0, v.shape[-1]))
        return q, k, v

    def _project(self, x: Tensor, carried: Carried) -> tuple[list[Tensor], Tensor]:
        """Queries and keys in front of the rotation, where they are normed one by one, (B, T, H, D) and (B, T, Hkv, D),
        else side by side, (B, T, H + Hkv, D); and values (B, T, Hkv, D)."""
        B, T, _ = x.shape
        qkv = self.qkv_proj(x)  # (B, T, (H + 2 Hkv) D)
        for part, weights in self._projections:
            qkv = part.change(weights, qkv, carried, self.layer)
        qkv = qkv.view(B, T, -1, self.head_dim)
        qk, v = qkv.split([self.n_heads + self.n_kv_heads, self.n_kv_heads], dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split([self.n_heads, self.n_kv_heads], dim=2)
            if self.norms_heads:
                q, k = self.q_norm(q), self.k_norm(k)
            else:  # over all heads at once
                q, k = self.q_norm(q.flatten(2)).view(q.shape), self.k_norm(k.flatten(2)).view(k.shape)
            return [q, k], v
        if torch.is_grad_enabled():
            v = v.contiguous()  # frees the projection's output, of which the backward pass needs nothing else
        return [qk], v

    @torch.no_grad()
    def weights(self, x: Tensor, plan: AttentionPlan, carried: Carried | None = None) -> Tensor:
        """(B, H, T, S + T) how much each token of x (B, T, d_model) attends to the S learned sinks and to each token.

        For looking at: `forward` never holds them. The rows sum to 1. Without a cache.
        """
        T = x.shape[1]
        q, k, _ = self._heads(x, plan, None if carried is None else dict(carried))
        visible = plan.visible if plan.blocks is None else plan.blocks.pairs()
        if visible is None:
            visible = torch.ones(1, T, T, dtype=torch.bool, device=x.device)
            visible = visible.tril() if plan.causal else visible
        visible = F.pad(visible, (k.shape[1] - T, 0), value=True)[:, None]  # (1 or B, 1, T, S + T)
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=2)
        scores = soft_cap(torch.einsum("bthd,bnhd->bhtn", q, k) * self.scale, self.softcap)
        return scores.float().masked_fill(~visible, -torch.inf).softmax(dim=-1)
