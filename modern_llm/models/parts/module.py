"""The module that holds the weights of a part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from modern_llm.models.parts.part import Part, Sizes, Weight


class PartModule(nn.Module):
    """The weights that a part declared, as attributes.

    Args:
        part: whose they are.
        weights: by name.
        layer: block that they stand in; None: once in the model.
    """

    def __init__(self, part: Any, weights: dict[str, Weight], layer: int | None = None) -> None:
        super().__init__()
        self.part, self.declared, self.layer = part, weights, layer
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(torch.empty(weight.shape)))

    def parameter_kind(self, name: str) -> str:
        """What a weight is, for optimisers."""
        return self.declared[name].kind

    @torch.no_grad()
    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial values."""
        for name, weight in self.declared.items():
            nn.init.normal_(getattr(self, name), weight.mean, weight.std, generator)


class Parts(nn.ModuleDict):
    """The modules of several parts, by name.

    Args:
        parts: as they are configured.
        sizes: of the model.
        layer: the block that they stand in; None: what they have once in a model.
    """

    def __init__(self, parts: Mapping[str, Part], sizes: Sizes, layer: int | None = None) -> None:
        super().__init__()
        # Walked in every block of every step of decoding: a plain list is the fastest.
        self.each: list[tuple[Any, PartModule]] = []
        for name, part in parts.items():
            weights = part.model_weights(sizes) if layer is None else part.weights(sizes, layer)
            self[name] = PartModule(part, weights, layer)
            self.each.append((part, self[name]))  # type: ignore[arg-type]
