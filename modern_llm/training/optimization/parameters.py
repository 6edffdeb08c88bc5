"""Which kind of thing each trained parameter of a model is: what an optimiser has to know of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from modern_llm.models.parameter_kinds import EMBEDDINGS, HEADS, KINDS, MATRICES, VECTORS


@dataclass(frozen=True)
class Kind:
    """The trained parameters of one kind, each once, in the order of the model.

    Attributes:
        tensors: the parameters.
        rows: of each, how many rows each linear map has that it stacks, along its last dimension but one. They sum to
            that dimension: a single number where it is one map.
    """

    tensors: list[Tensor] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)


def trained_parameters(model: nn.Module, rounds: bool = False) -> dict[str, Kind]:
    """Sort a model's trained parameters by the modules that they belong to; names mean nothing.

    A module says what its own parameters are in a method `parameter_kind(name)`, and which of them stack several linear
    maps in `stacked_rows`, name -> rows. Where it says nothing, a linear map inside `model.blocks` is a matrix and one
    outside is a head (its rows are looked up by class or token rather than fed to a next layer, Jordan et al. 2024),
    any other table of two dimensions is an embedding, and the rest are vectors. A head that is an embedding as well is
    a head.

    Args:
        model: with its parameters.
        rounds: the optimiser rounds updates of weights in bf16 at random (see `narrow.py`).

    Returns:
        Kinds by name, all of `parameter_kinds.KINDS`.

    Raises:
        ValueError: a 16-bit parameter which is not rounded at random. Its updates would be lost to rounding.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    narrow = [name for name, p in named.items()
              if torch.finfo(p.dtype).bits < 32 and not (rounds and p.dtype == torch.bfloat16)]  # fmt: skip
    if narrow:
        raise ValueError(
            f"{narrow[0]} is trained in {named[narrow[0]].dtype}, as are {len(narrow) - 1} more: most updates would be "
            "rounded away. Keep trained parameters in fp32, which hardware.weights=fp32 does; AdamW and Muon can round "
            "those in bf16 at random (hardware.weights=bf16). hardware.precision sets what is computed in."
        )
    inside = {id(module) for block in getattr(model, "blocks", [model]) for module in block.modules()}
    told: dict[int, str] = {}
    rows: dict[int, tuple[int, ...]] = {}
    for module in model.modules():
        stacked = getattr(module, "stacked_rows", {})
        for name, p in module.named_parameters(recurse=False):
            if told.get(id(p)) != HEADS:
                told[id(p)] = _kind_of(module, name, p, id(module) in inside)
            if name in stacked:
                rows[id(p)] = stacked[name]
    found = {kind: Kind() for kind in KINDS}
    for p in named.values():
        of_kind = found[told[id(p)]]
        of_kind.tensors.append(p)
        of_kind.rows.append(rows.get(id(p)) or (p.shape[-2] if p.dim() >= 2 else 1,))
    return found


def is_linear_map(module: Any) -> bool:
    """Whether a module multiplies by its weight, and adds its bias where it has one."""
    theirs = sys.modules.get("transformers.pytorch_utils")  # where it is not loaded, no module is one of its
    return isinstance(module, (nn.Linear, theirs.Conv1D) if theirs is not None else nn.Linear)


def _kind_of(module: nn.Module, name: str, p: Tensor, inside: bool) -> str:
    """What a parameter of a module is."""
    says: Any = getattr(module, "parameter_kind", None)
    if says is not None:
        return str(says(name))
    if p.dim() < 2:
        return VECTORS
    if is_linear_map(module):
        return MATRICES if inside else HEADS
    return EMBEDDINGS
