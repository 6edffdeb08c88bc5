"""One block of the decoder, put together from its parts."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.kv_cache import DecoderCache
from modern_llm.models.attention.other import attention_of
from modern_llm.models.attention.plan import AttentionPlan
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.feed_forward.dense import FeedForward
from modern_llm.models.feed_forward.experts import MoE, Routing
from modern_llm.models.norm import RMSNorm
from modern_llm.models.parts.module import Parts
from modern_llm.models.parts.part import Branch, Carried


class DecoderBlock(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + ffn(norm(x)), between what the parts of the residual
    stream do when x enters and when it leaves.

    Args:
        config: of the model.
        layer: number of the block, from 0.
    """

    def __init__(self, config: ModernLLMConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer, self.n_layers, self.dropout = layer, config.n_layers, config.dropout
        self.residual = Parts(config.residual, config.sizes, layer)
        self.branches = Parts(config.branches, config.sizes, layer)
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = attention_of(config, layer)
        self.ffn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.ffn: FeedForward | MoE
        if config.moe is None:
            self.ffn = FeedForward(config.ffn, config.d_model, config.ffn_size, config.ffn_dropout)
        else:
            self.ffn = MoE(config.moe, config.ffn, config.d_model, config.expert_size)
        # Looking a module up takes longer than most blocks have parts.
        self._stream, self._branches = self.residual.each, self.branches.each

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        carried: Carried,
        cache: DecoderCache | None = None,
        expert_load: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None, Carried]:
        """x: (B, T, d_model); carried: what the blocks before handed on; expert_load: as in `MoE.route`. Returns the
        new residual stream, with experts how tokens were routed, and what is handed on."""
        carried = dict(carried)
        for part, weights in self._stream:
            x = part.enter(weights, x, carried, self.layer, self.n_layers)
        attended = self.attention(self._read(self.attention_norm(x), carried, "attention"), plan, carried, cache)
        x = x + F.dropout(attended, self.dropout, self.training)
        normed, routing = self._read(self.ffn_norm(x), carried, "ffn"), None
        if isinstance(self.ffn, MoE):
            fed, routing = self.ffn(normed, expert_load)
        else:
            fed = self.ffn(normed)
        x = x + F.dropout(fed, self.dropout, self.training)
        for part, weights in self._stream:
            part.leave(weights, x, carried, self.layer, self.n_layers)
        return x, routing, carried

    def _read(self, normed: Tensor, carried: Carried, branch: Branch) -> Tensor:
        """What a branch reads of the normed stream (B, T, d_model)."""
        for part, weights in self._branches:
            normed = part.read(weights, normed, carried, branch, self.layer)
        return normed
