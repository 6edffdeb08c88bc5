"""How optimisers keep their running means: exactly, or in 8 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 256  # numbers with a scale of their own
SMALLEST = 4096  # elements; what has fewer is kept exactly, and costs nothing
_SCALE = "{}_scale"  # of a running mean, in the state


def dynamic_map(signed: bool) -> Tensor:
    """(256,) the numbers in [-1, 1], or [0, 1], that 8 bits stand for, ascending: close to each other around 0 and
    spread over seven orders of magnitude (dynamic tree quantisation, Dettmers 2016, arXiv 1511.04561, section 2.1, as
    in Dettmers et al. 2022, arXiv 2110.02861, section 2.2)."""
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (exponent + (0 if signed else 1)) + 1, dtype=torch.float64)
        means = ((edges[:-1] + edges[1:]) / 2 * 10.0 ** (exponent - 6)).float()
        values += [means, -means] if signed else [means]
    return torch.cat(values).sort().values


class RunningMeans:
    """Running means in fp32, in the state of an optimiser."""

    def begin(self, state: dict[str, Any], name: str, like: Tensor) -> None:
        """Start one, at 0, in the shape of a parameter."""
        state[name] = torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))

    def read(self, state: dict[str, Any], name: str) -> Tensor:
        """It in fp32, to be changed in place and written back."""
        return state[name]

    def write(self, state: dict[str, Any], name: str, value: Tensor) -> None:
        """Keep what `read` gave, changed."""


class EightBitMeans(RunningMeans):
    """Running means in 8 bits and a scale for every 256 of them (Dettmers et al. 2022, arXiv 2110.02861).

    Of squares the root is kept, which is what they are needed for: so small ones beside a large one are not lost.
    None that is above 0 becomes 0, by which an update would be divided.
    """

    squares = frozenset({"exp_avg_sq"})

    def __init__(self) -> None:
        self._maps: dict[tuple[bool, torch.device], tuple[Tensor, Tensor]] = {}

    def _map(self, name: str, device: torch.device) -> tuple[Tensor, Tensor]:
        """Values of the codes, and the borders between them."""
        key = (name not in self.squares, device)
        if key not in self._maps:
            values = dynamic_map(key[0]).to(device)
            self._maps[key] = values, (values[:-1] + values[1:]) / 2
        return self._maps[key]

    def begin(self, state: dict[str, Any], name: str, like: Tensor) -> None:
        if like.numel() < SMALLEST:
            super().begin(state, name, like)
            return
        zero = 0 if name in self.squares else 127  # the code of 0, behind those of negative numbers
        state[name] = torch.full(like.shape, zero, dtype=torch.uint8, device=like.device)
        state[_SCALE.format(name)] = torch.zeros(-(-like.numel() // BLOCK), device=like.device)

    def read(self, state: dict[str, Any], name: str) -> Tensor:
        scale = state.get(_SCALE.format(name))
        if scale is None:
            return super().read(state, name)
        codes: Tensor = state[name]
        values, _ = self._map(name, codes.device)
        found = _blocks(values[codes.flatten().int()]).mul_(scale[:, None])
        if name in self.squares:
            found.square_()
        return found.flatten()[: codes.numel()].view(codes.shape)

    def write(self, state: dict[str, Any], name: str, value: Tensor) -> None:
        scale = state.get(_SCALE.format(name))
        if scale is None:
            return
        codes: Tensor = state[name]
        blocks = _blocks(value.sqrt().flatten() if name in self.squares else value.flatten())
        torch.amax(blocks.abs(), dim=1, out=scale)
        _, borders = self._map(name, codes.device)
        shares = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        found = torch.bucketize(shares, borders, out_int32=True)
        if name in self.squares:
            found = torch.where(blocks > 0, found.clamp(min=1), 0)
        codes.copy_(found.flatten()[: codes.numel()].view(codes.shape))


def _blocks(flat: Tensor) -> Tensor:
    """(n, 256) of a flat tensor, zeros behind its end."""
    return F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
