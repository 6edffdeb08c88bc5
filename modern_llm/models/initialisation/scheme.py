"""What a scheme of initial weights says: standard deviations by the place of a matrix. Imports no torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

from modern_llm.checks import require


@dataclass(frozen=True)
class InitScheme(ABC):
    """Normal weights, whose standard deviations depend on their place. A new scheme is a class in a file of this folder
    and its file in `conf/model/init/`. All its settings are above 0."""

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            require(value > 0, f"model.init.{key}", value, "must be above 0", "Raise it")

    @abstractmethod
    def embedding(self, d_model: int) -> float:
        """Of the embedding, unless it is the head as well."""

    @abstractmethod
    def head(self, d_model: int) -> float:
        """Of the output head, or of an embedding that is the head as well."""

    @abstractmethod
    def inner(self, inputs: int) -> float:
        """Of a matrix inside a block, with so many inputs."""

    @abstractmethod
    def last(self, inputs: int, n_layers: int) -> float:
        """Of a matrix that writes to the residual stream, twice in each of the layers."""

    def sinks(self) -> float:
        """Of learned sinks: small, so that every token starts out as likely to be attended to as they are."""
        return 0.02
