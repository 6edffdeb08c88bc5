"""Which kind of thing each trained parameter of a model is: what an optimiser has to know of it."""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn

from modern_llm.models.attention.sink_rows import SinkRows
from modern_llm.models.feed_forward.experts import MoE


class ParametersByKind(NamedTuple):
    """The trained parameters, each once, in the order of the model."""

    matrices: list[Tensor]  # (out, in), or (experts, out, in): the linear maps inside the blocks
    tables: list[Tensor]  # at least two dimensions: embeddings, positions, output and classification heads
    vectors: list[Tensor]  # norms, biases, sinks


def trained_parameters(model: nn.Module) -> ParametersByKind:
    """Sort a model's trained parameters by the modules that they belong to; names mean nothing.

    A head is a linear map as well, but its rows are looked up by class or token rather than fed to a next layer, so it
    stands with the embeddings (Jordan et al. 2024). Heads are told by their place: outside `model.blocks`.

    Raises:
        ValueError: a 16-bit parameter. Its updates would be lost to rounding, and so would its running means.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    narrow = [name for name, p in named.items() if torch.finfo(p.dtype).bits < 32]
    if narrow:
        raise ValueError(
            f"{narrow[0]} is trained in {named[narrow[0]].dtype}, as are {len(narrow) - 1} more: most updates would be "
            "rounded away. Keep trained parameters in fp32; hardware.precision sets what is computed in."
        )
    maps = {id(p) for block in getattr(model, "blocks", [model]) for m in block.modules() for p in _linear_maps(m)}
    sinks = {id(p) for m in model.modules() if isinstance(m, SinkRows) for p in m.parameters()}
    kinds = ParametersByKind([], [], [])
    for p in named.values():
        if id(p) in maps:
            kinds.matrices.append(p)
        elif p.dim() >= 2 and id(p) not in sinks:
            kinds.tables.append(p)
        else:
            kinds.vectors.append(p)
    return kinds


def _linear_maps(module: nn.Module) -> list[Tensor]:
    """Matrices of one module, without those of its children."""
    if isinstance(module, MoE):
        return list(module.stacks)
    theirs = sys.modules.get("transformers.pytorch_utils")  # where it is not loaded, no module is one of its
    linear = (nn.Linear, theirs.Conv1D) if theirs is not None else nn.Linear
    return [module.weight] if isinstance(module, linear) else []
