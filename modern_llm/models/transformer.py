"""The decoder: `ModernDecoderLM`, from token ids to logits or loss, on one page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.plan import plan_attention
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.block import block_of
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.embedding.predecessors import Predecessors
from modern_llm.models.feed_forward.experts import Routing
from modern_llm.models.fused_loss import IGNORE_INDEX, linear_cross_entropy
from modern_llm.models.initialisation.draw import draw_weights
from modern_llm.models.kernels import compute_dtype
from modern_llm.models.linear import Linear
from modern_llm.models.output_head import OutputHead
from modern_llm.models.parts.module import Parts
from modern_llm.models.parts.part import Carried
from modern_llm.models.recomputing import HostMemory, recomputed


@dataclass
class ModelOutput:
    """What a forward pass gives.

    Attributes:
        hidden: (B, T, d_model) after the final norm.
        logits: (B, T, V), or None when labels were given.
        loss: mean cross-entropy over the labelled positions in nats, or None without labels.
        aux_losses: weighted auxiliary losses by name, to be added to the loss; means over this batch's tokens.
        expert_load: (layers with experts, experts) share of the assignments of each expert; None where none has.
        cache: the cache that was given, now holding these tokens.
    """

    hidden: Tensor
    logits: Tensor | None = None
    loss: Tensor | None = None
    aux_losses: dict[str, Tensor] = field(default_factory=dict)
    expert_load: Tensor | None = None
    cache: DecoderCache | None = None


class ModernDecoderLM(nn.Module):
    """Decoder-only language model: norms, RoPE, grouped-query attention with sinks, a feed-forward layer or experts.

    Args:
        config: hyper-parameters, with `vocab_size` set.

    Raises:
        ValueError: `config.vocab_size` is None.
    """

    def __init__(self, config: ModernLLMConfig) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("model.vocab_size=None: not known yet. Call config.with_vocab_size(tokenizer size) first.")
        self.config, views = config, config.views
        self.looks_back = bool(
            config.embedding or config.branches or config.projections or config.attention or config.block
        )
        self.distinct_views = list(dict.fromkeys(views))
        self.view_of_layer = [self.distinct_views.index(view) for view in views]
        self.embedding = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, config.d_model), freeze=False)
        self.embedding_parts = Parts(config.embedding, config.sizes)
        self.rotary = Rotary.of_model(config)
        self.blocks = nn.ModuleList(block_of(config, layer) for layer in range(config.n_layers))
        self.residual = Parts(config.residual, config.sizes)
        self.final_norm = config.built_norm()
        self.head = Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.embedding_dropout = config.dropout if config.embedding_dropout is None else config.embedding_dropout
        self.output_dropout, self.activation_checkpointing = config.output_dropout, False
        self.host_memory: HostMemory | None = None
        self.flexible_attention = False  # whether FlexAttention computes what has a mask, where there is no cache
        draw_weights(self, config.init, config.n_layers)

    @property
    def output_head(self) -> OutputHead:
        """From hidden states to logits."""
        return OutputHead(self.head.weight, self.config.logit_softcap, self.config.logit_scale)

    @property
    def balances_experts(self) -> bool:
        """Whether the loss depends on the load of experts over a whole batch."""
        moe = self.config.moe
        return moe is not None and moe.balance_loss_weight > 0 and self.config.plain_layers > 0

    def new_cache(self, batch_size: int, max_tokens: int | None) -> DecoderCache:
        """An empty cache for B texts of at most `max_tokens` tokens; None: unbounded (needs a window or sinks)."""
        weight = self.head.weight
        return DecoderCache(self.config, batch_size, max_tokens, compute_dtype(weight), weight.device)

    def hidden_states(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: DecoderCache | None = None,
        branch_ids: Tensor | None = None,
        expert_load: Tensor | None = None,
        branch_lengths: Tensor | None = None,
    ) -> ModelOutput:
        """Everything but the output head. Arguments as in `forward`, and `branch_ids` (B, T): 0 for a text's trunk,
        other numbers for continuations of it, none of which sees another; `expert_load` (layers with experts,
        experts): shares in the whole batch, of which this is a part; `branch_lengths` as in `plan_attention`."""
        tokens, dtype = input_ids.shape[1], compute_dtype(self.head.weight)
        if self.config.attention or self.config.block:
            branch_lengths = None  # what else computes attention goes by masks
        how = (branch_lengths, self.config.attention_softcap is not None, self.flexible_attention)
        plans = []
        for view in self.distinct_views:
            held = None if cache is None else cache.of(view)
            marks = (attention_mask, document_ids, held, branch_ids)
            plans.append(plan_attention(view, self.rotary, tokens, *marks, dtype, *how))
        x = self.embedding(input_ids)  # (B, T, d_model)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        before = Predecessors(attention_mask, document_ids, branch_ids, cache) if self.looks_back else None
        for part, weights in self.embedding_parts.each:
            x = part.apply(weights, x, before)
        x = F.dropout(x, self.embedding_dropout, self.training)
        carried: Carried = {"input_ids": input_ids, "embedded": x, "before": before}
        routings: list[Routing] = []
        for layer, block in enumerate(self.blocks):
            plan = plans[self.view_of_layer[layer]]
            load = expert_load[len(routings)] if expert_load is not None and self.config.is_plain(layer) else None
            every = int(self.activation_checkpointing)
            if every and layer % every == 0 and self.training and cache is None:
                x, routing, carried = recomputed(block, x, plan, carried, None, load, memory=self.host_memory)
            else:
                # Compiled blocks would compile again for every length of a cache: decoding calls them uncompiled.
                x, routing, carried = (block if cache is None else block._call_impl)(x, plan, carried, cache, load)
            if routing is not None:
                routings.append(routing)
        for part, weights in self.residual.each:
            x = part.end(weights, x, carried)
        if cache is not None:
            cache.advance([(tokens, plan.real, plan.positions) for plan in plans])
        output = ModelOutput(F.dropout(self.final_norm(x), self.output_dropout, self.training), cache=cache)
        if self.config.moe is not None and routings:
            balance = torch.stack([r.balance_loss for r in routings]).mean()
            z_loss = torch.stack([r.z_loss for r in routings]).mean()
            output.aux_losses["balance_loss"] = self.config.moe.balance_loss_weight * balance
            output.aux_losses["z_loss"] = self.config.moe.z_loss_weight * z_loss
            output.expert_load = torch.stack([r.load for r in routings])
        return output

    def compile_states(self, **options: Any) -> None:
        """Have `hidden_states` compiled as one graph, in place, where it reads no cache; `options` of
        `torch.compile`."""
        plain, compiled = type(self).hidden_states, torch.compile(type(self).hidden_states, **options)

        def states(input_ids: Tensor, *rest: Any, **named: Any) -> ModelOutput:
            reads_cache = named.get("cache") is not None or (len(rest) > 2 and rest[2] is not None)
            return (plain if reads_cache else compiled)(self, input_ids, *rest, **named)

        self.hidden_states = states  # type: ignore[method-assign]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> ModelOutput:
        """Logits, or with labels the loss, without the logits of the whole batch in memory.

        Args:
            input_ids: (B, T).
            attention_mask: (B, T) 1 at tokens, 0 at padding, on either side; None: no padding.
            document_ids: (B, T) number of the packed document of each token; tokens see their own document only.
            labels: (B, T) the id to be predicted AT each position, shifted already; `IGNORE_INDEX` carries no loss.
            cache: continue the texts it holds; their keys and values are added to it.
        """
        output = self.hidden_states(input_ids, attention_mask, document_ids, cache)
        if labels is None:
            output.logits = self.output_head.logits(output.hidden)
            return output
        count = (labels != IGNORE_INDEX).sum().clamp(min=1)
        output.loss = linear_cross_entropy(output.hidden, self.output_head, labels) / count
        output.loss = output.loss + sum(output.aux_losses.values())
        return output
