"""Where each weight of the decoder is stored in an architecture of transformers, and in which layout."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from modern_llm.models.attention.rope import PlainRope
from modern_llm.models.config import ModernLLMConfig


class Layout(NamedTuple):
    """How a stored weight becomes ours, and ours a stored one; both leave their argument as it is. `save` None: only
    architectures that are not written have it."""

    load: Callable[[Tensor, ModernLLMConfig], Tensor]
    save: Callable[[Tensor, ModernLLMConfig], Tensor] | None = None


def _interleaved(halves: Tensor) -> Tensor:
    """(..., 2 F) gate and up in turn, of one behind the other."""
    return torch.stack(halves.chunk(2, dim=-1), dim=-1).flatten(-2)


def _one_behind_the_other(interleaved: Tensor) -> Tensor:
    return torch.cat([interleaved[..., ::2], interleaved[..., 1::2]], dim=-1)


def _turned_pairs(weight: Tensor, config: ModernLLMConfig) -> Tensor:
    """Queries and keys of a fused projection whose heads have what turns in front: in ours, the first pairs turn, and a
    pair is a channel of the first half of a head and one of the second."""
    assert isinstance(config.rope, PlainRope)
    head, turned = config.head_size, config.rope.turned(config.head_size)
    half, kept = turned // 2, (head - turned) // 2
    order = [*range(half), *range(turned, turned + kept), *range(half, turned), *range(turned + kept, head)]
    heads = weight.view(-1, head, *weight.shape[1:])
    queries_and_keys = config.n_heads + config.n_kv_heads
    return torch.cat([heads[:queries_and_keys, order], heads[queries_and_keys:]]).view(weight.shape)


def _their_pairs(weight: Tensor, config: ModernLLMConfig) -> Tensor:
    places = torch.arange(len(weight))[:, None]
    return weight[_turned_pairs(places, config)[:, 0].argsort()]


PLAIN = Layout(lambda stored, config: stored, lambda ours, config: ours)
TRANSPOSED = Layout(lambda stored, config: stored.mT, lambda ours, config: ours.mT)
# Norms that multiply with 1 + weight: in 16 bit the sum would be rounded, so ours stays in fp32.
PLUS_ONE = Layout(lambda stored, config: 1 + stored.float())
INTERLEAVED = Layout(lambda stored, config: _one_behind_the_other(stored), lambda ours, config: _interleaved(ours))
INTERLEAVED_TRANSPOSED = Layout(
    lambda stored, config: _one_behind_the_other(stored).mT, lambda ours, config: _interleaved(ours.mT)
)
PARTLY_TURNED = Layout(_turned_pairs, _their_pairs)


class Names(NamedTuple):
    """Their modules and parameters by ours. Several names in one entry are stacked along the first dimension.

    Attributes:
        outside: what stands once in a model; `weight` and `bias` are added to the names of modules.
        layer: what stands in each block.
        prefix: of a block, in front of its number.
        layouts: those that are not plain, by our name inside a block or outside of them.
    """

    outside: dict[str, str]
    layer: dict[str, str]
    prefix: str
    layouts: dict[str, Layout]

    def of(self, ours: str) -> tuple[list[str], Layout]:
        """Their names of one of our weights, and its layout.

        Raises:
            KeyError: they have none.
        """
        table, name, before = self.outside, ours, ""
        if ours.startswith("blocks."):
            _, number, name = ours.split(".", 2)
            table, before = self.layer, f"{self.prefix}.{number}."
        module, _, leaf = name.rpartition(".")
        theirs = [*table[name].split()] if name in table else [f"{part}.{leaf}" for part in table[module].split()]
        return [before + part for part in theirs], self.layouts.get(name, PLAIN)


LLAMA = Names(
    outside={"embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"},
    layer={
        "attention_norm": "input_layernorm",
        "attention.qkv_proj": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "attention.q_norm": "self_attn.q_norm",
        "attention.k_norm": "self_attn.k_norm",
        "attention.o_proj": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn.gate_up_proj": "mlp.gate_proj mlp.up_proj",
        "ffn.down_proj": "mlp.down_proj",
    },
    prefix="model.layers",
    layouts={},
)


def with_layer(names: Names, layer: dict[str, str], layouts: dict[str, Layout] | None = None) -> Names:
    """Other names for some of what stands in each block."""
    return names._replace(layer=names.layer | layer, layouts=layouts or {})
