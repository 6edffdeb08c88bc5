"""The initial weights of GPT-2."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.defaults import Defaults
from modern_llm.models.initialisation.scheme import InitScheme

_DEFAULTS = Defaults("model/init/gpt2")


@dataclass(frozen=True)
class GPT2Init(InitScheme):
    """One standard deviation for all; std / sqrt(2 n_layers) for what writes to the residual stream (Radford et al.
    2019, section 2.3).

    Args:
        std: the standard deviation.
    """

    std: float = _DEFAULTS("std")

    def embedding(self, d_model: int) -> float:
        return self.std

    def head(self, d_model: int) -> float:
        return self.std

    def inner(self, inputs: int) -> float:
        return self.std

    def last(self, inputs: int, n_layers: int) -> float:
        return self.std / (2 * n_layers) ** 0.5

    def sinks(self) -> float:
        return self.std
