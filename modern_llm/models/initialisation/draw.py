"""Drawing the initial weights of a model, by the modules that they stand in."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import nn

from modern_llm.models.attention.sink_rows import SinkRows
from modern_llm.models.feed_forward.experts import MoE
from modern_llm.models.initialisation.scheme import InitScheme
from modern_llm.models.linear import Linear
from modern_llm.models.norm import Norm
from modern_llm.models.parts.module import PartModule


@torch.no_grad()
def draw_weights(model: nn.Module, scheme: InitScheme, n_layers: int) -> None:
    """Fill every weight of a model that has `blocks`. Linear maps outside of them are heads.

    One number is taken from torch's generator, and each module draws with a generator of its own, whose seed comes from
    that number and the module's name: models that differ in one part begin with equal weights everywhere else.
    """
    number = int(torch.empty((), dtype=torch.int64, device="cpu").random_())
    inside = {id(module) for module in model.get_submodule("blocks").modules()}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, Linear) and id(m) not in inside}
    for name, module in model.named_modules():
        own = blake2b(f"{number} {name}".encode(), digest_size=8)
        generator = torch.Generator().manual_seed(int.from_bytes(own.digest()) >> 1)
        if isinstance(module, PartModule):
            module.reset(generator)
        elif isinstance(module, Norm):
            module.reset()
        elif isinstance(module, SinkRows):
            module.reset(scheme.sinks(), generator)
        elif isinstance(module, nn.Embedding) and id(module.weight) not in heads:
            nn.init.normal_(module.weight, std=scheme.embedding(module.embedding_dim), generator=generator)
        elif isinstance(module, MoE):
            first, down, *biases = module.experts
            nn.init.normal_(first, std=scheme.inner(first.shape[-1]), generator=generator)
            nn.init.normal_(down, std=scheme.last(down.shape[-1], n_layers), generator=generator)
            for bias in biases:
                if bias is not None:
                    nn.init.zeros_(bias)
        elif isinstance(module, Linear):
            if id(module) not in inside:
                std = scheme.head(module.in_features)
            elif module.ends_branch:
                std = scheme.last(module.in_features, n_layers)
            else:
                std = scheme.inner(module.in_features)
            nn.init.normal_(module.weight, std=std, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
