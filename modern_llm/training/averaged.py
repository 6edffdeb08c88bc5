"""The weights of a model, averaged while it trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modern_llm.training.optimization.averages import Average
from modern_llm.training.parallel.shards import cut, laid, piece_of, whole


class AveragedWeights:
    """An average of a model's trained weights.

    Args:
        average: how they are averaged; None: not at all.
        model: whose weights.
    """

    def __init__(self, average: Average | None, model: nn.Module) -> None:
        self.average, self.taken = average, 0
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._weights = {name: piece_of(p).detach() for name, p in self._trained.items()}
        self._means: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, step: int, progress: float) -> None:
        """Count in the weights behind `step`, at `progress` in [0, 1] of the run."""
        if self.average is None or progress < self.average.start:
            return
        share = self.average.share(step, self.taken)
        if share == 0:
            return
        if not self._means:
            self._means = {name: weight.clone() for name, weight in self._weights.items()}
        torch._foreach_lerp_(list(self._means.values()), list(self._weights.values()), share)
        self.taken += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the model holds the average, and this the weights."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def settle(self) -> None:
        """Leave the average in the model for good."""
        self._exchange()
        self._means, self.average = {}, None

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, mean in self._means.items():  # by content: others know these tensors, too
            weight = self._weights[name].clone()
            self._weights[name].copy_(mean)
            mean.copy_(weight)

    def weights(self) -> dict[str, Tensor]:
        """What a checkpoint needs besides the model and `taken`, inside `in_place`: what training goes on from."""
        return {name: whole(weight) for name, weight in self.share().items()}

    def share(self) -> dict[str, Tensor]:
        """What this process has of these weights, pieces as `DTensor`."""
        return {name: laid(mean, self._trained[name]) for name, mean in self._means.items()}

    def room_for(self, listed: Iterable[str]) -> dict[str, Tensor]:
        """Empty tensors for what this process needs of the weights of these names."""
        return {name: laid(torch.empty_like(self._weights[name]), self._trained[name]) for name in listed}

    @torch.no_grad()
    def restore(self, taken: int, weights: dict[str, Tensor]) -> None:
        """Go on from a checkpoint whose model has been loaded: it holds the average, unless none was taken."""
        self.taken = taken
        if self.average is None or not weights:
            for name, weight in weights.items():  # averaging was switched off: the weights themselves go on
                self._weights[name].copy_(cut(weight, self._trained[name]))
            return
        self._means = {name: weight.clone() for name, weight in self._weights.items()}
        for name, held in self._weights.items():
            held.copy_(cut(weights[name], self._trained[name]))
