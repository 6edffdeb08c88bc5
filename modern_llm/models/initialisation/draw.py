"""Drawing the initial weights of a model, by the modules that they stand in."""

from __future__ import annotations

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
    """Fill every weight of a model that has `blocks`. Linear maps outside of them are heads."""
    inside = {id(module) for module in model.get_submodule("blocks").modules()}
    heads = {id(m.weight) for m in model.modules() if isinstance(m, Linear) and id(m) not in inside}
    for module in model.modules():
        if isinstance(module, PartModule | Norm):
            module.reset()
        elif isinstance(module, SinkRows):
            module.reset(scheme.sinks())
        elif isinstance(module, nn.Embedding) and id(module.weight) not in heads:
            nn.init.normal_(module.weight, std=scheme.embedding(module.embedding_dim))
        elif isinstance(module, MoE):
            first, down, *biases = module.experts
            nn.init.normal_(first, std=scheme.inner(first.shape[-1]))
            nn.init.normal_(down, std=scheme.last(down.shape[-1], n_layers))
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
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
