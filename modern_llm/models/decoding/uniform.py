"""The random numbers that texts are drawn with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_AT_ONCE = 64  # numbers of each text


class UniformNumbers:
    """Uniform numbers in [0, 1), one a token, for each of n texts from a generator of its own, so that a text depends
    neither on its neighbours nor on the device.

    They are drawn on the host, many at a time: a GPU would be asked once for every text and token.

    Args:
        seeds: of the generators, one a text.
        device: where the numbers are wanted.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._device = device
        self._drawn: list[Tensor] = []  # n of (_AT_ONCE,) on the host
        self._used = [_AT_ONCE] * len(self._generators)
        self._here: Tensor | None = None  # (n, _AT_ONCE) of them on the device
        self._places: Tensor | None = None  # (n, 1) of what comes next

    def next(self, dtype: torch.dtype) -> Tensor:
        """(n, 1) numbers that were not given before."""
        if self._here is None or self._places is None or max(self._used) == _AT_ONCE:
            self._draw(dtype)
            assert self._here is not None
            assert self._places is not None
        found = self._here.gather(1, self._places)
        self._places, self._used = self._places + 1, [used + 1 for used in self._used]
        return found

    def _draw(self, dtype: torch.dtype) -> None:
        """As many as were used, behind those that were not."""
        drawn = self._drawn or [torch.empty(_AT_ONCE, dtype=dtype) for _ in self._generators]
        self._drawn = [
            torch.cat([numbers[used:], torch.rand(used, generator=generator, dtype=dtype)])
            for numbers, used, generator in zip(drawn, self._used, self._generators, strict=True)
        ]
        self._used = [0] * len(self._generators)
        self._bring()

    def _bring(self) -> None:
        if self._drawn:
            self._here = torch.stack(self._drawn).to(self._device)
            self._places = torch.tensor(self._used, device=self._device)[:, None]

    def at(self, rows: Sequence[int]) -> UniformNumbers:
        """Those of the texts in these rows alone, each of them once."""
        kept = UniformNumbers([], self._device)
        kept._generators, kept._used = [self._generators[row] for row in rows], [self._used[row] for row in rows]
        kept._drawn = [self._drawn[row] for row in rows] if self._drawn else []
        kept._bring()
        return kept

    def with_more(self, more: UniformNumbers) -> UniformNumbers:
        """Those of other texts as well; both have given numbers, or neither has."""
        joined = UniformNumbers([], self._device)
        joined._generators, joined._used = self._generators + more._generators, self._used + more._used
        joined._drawn = self._drawn + more._drawn
        joined._bring()
        return joined
