"""One block of the decoder, put together from its parts, or what stands in its place."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.layer import Attention
from modern_llm.models.attention.plan import AttentionPlan
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.feed_forward.dense import FeedForward
from modern_llm.models.feed_forward.experts import MoE, Routing
from modern_llm.models.norm import Norm
from modern_llm.models.parts.mixing import Mixing
from modern_llm.models.parts.module import Parts
from modern_llm.models.parts.part import Branch, Carried, MixingPart


class DecoderBlock(nn.Module):
    """Residual block: x + attention(norm(x)), then x + ffn(norm(x)), with norms in front of a branch, behind it, or
    both, between what the parts of the residual stream do when x enters and when it leaves.

    Args:
        config: of the model.
        layer: number of the block, from 0.
    """

    def __init__(self, config: ModernLLMConfig, layer: int = 0) -> None:
        super().__init__()
        self.layer, self.n_layers, self.dropout = layer, config.n_layers, config.dropout
        self.branch_scale = config.branch_scale
        self.writes_plainly = config.norm_place == "before" and config.branch_scale == 1
        before, behind = config.norm_place in ("before", "both"), config.norm_place in ("behind", "both")
        self.residual = Parts(config.residual, config.sizes, layer)
        self.branches = Parts(config.branches, config.sizes, layer)
        self.attention_norm = config.built_norm() if before else None
        other = config.mixing_part(layer)
        self.attention: Attention | Mixing
        self.attention = Attention(config, layer) if other is None else Mixing(other, config.sizes, layer)
        self.attention_end_norm = config.built_norm() if behind else None
        self.ffn_norm = config.built_norm() if before else None
        self.ffn: FeedForward | MoE
        if config.moe is None:
            self.ffn = FeedForward(config.ffn, config.d_model, config.ffn_size, config.ffn_dropout, config.ffn_bias)
        else:
            self.ffn = MoE(config.moe, config.ffn, config.d_model, config.expert_size, config.ffn_bias)
        self.ffn_end_norm = config.built_norm() if behind else None
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
        attended = self.attention(self._read(x, self.attention_norm, carried, "attention"), plan, carried, cache)
        if not self.writes_plainly:
            attended = self._written(attended, self.attention_end_norm)
        x = x + F.dropout(attended, self.dropout, self.training)
        read, routing = self._read(x, self.ffn_norm, carried, "ffn"), None
        if isinstance(self.ffn, MoE):
            fed, routing = self.ffn(read, expert_load)
        else:
            fed = self.ffn(read)
        if not self.writes_plainly:
            fed = self._written(fed, self.ffn_end_norm)
        x = x + F.dropout(fed, self.dropout, self.training)
        for part, weights in self._stream:
            part.leave(weights, x, carried, self.layer, self.n_layers)
        return x, routing, carried

    def _read(self, x: Tensor, norm: Norm | None, carried: Carried, branch: Branch) -> Tensor:
        """What a branch reads of the stream x (B, T, d_model)."""
        x = x if norm is None else norm(x)
        for part, weights in self._branches:
            x = part.read(weights, x, carried, branch, self.layer)
        return x

    def _written(self, out: Tensor, norm: Norm | None) -> Tensor:
        """What is added to the stream of what a branch gives, (B, T, d_model)."""
        out = out if norm is None else norm(out)
        return out if self.branch_scale == 1 else self.branch_scale * out


class OtherBlock(nn.Module):
    """What stands in the place of a block, between what the parts of the residual stream do.

    Args:
        part: as it is configured.
        config: of the model.
        layer: number of the block, from 0.
    """

    def __init__(self, part: MixingPart, config: ModernLLMConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.n_layers = layer, config.n_layers
        self.residual = Parts(config.residual, config.sizes, layer)
        self.mixing = Mixing(part, config.sizes, layer)
        self._stream = self.residual.each

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        carried: Carried,
        cache: DecoderCache | None = None,
        expert_load: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None, Carried]:
        """As `DecoderBlock.forward`, without experts."""
        carried = dict(carried)
        for part, weights in self._stream:
            x = part.enter(weights, x, carried, self.layer, self.n_layers)
        x = self.mixing(x, plan, carried, cache)
        for part, weights in self._stream:
            part.leave(weights, x, carried, self.layer, self.n_layers)
        return x, None, carried


def block_of(config: ModernLLMConfig, layer: int) -> DecoderBlock | OtherBlock:
    """Block `layer` of a decoder."""
    if config.block is None or config.is_plain(layer):
        return DecoderBlock(config, layer)
    return OtherBlock(config.block, config, layer)
