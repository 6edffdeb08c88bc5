"""Blocks whose inside is computed again in the backward pass, so that their inputs alone are kept: on the device, or in
the host's memory (Chen et al. 2016, arXiv 1604.06174; Rhu et al. 2016, arXiv 1602.08124)."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from modern_llm.models.kernels import has_content


class HostMemory:
    """Where inputs of blocks lie until the backward pass needs them, the last one first.

    On CUDA they travel on a stream of their own, through pinned memory: out while the block computes, back while the
    block behind it is computed again.

    Args:
        device: that computes. Of a CPU everything is copied all the same.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._held: list[weakref.ref[HeldInput]] = []  # oldest first

    def hold(self, x: Tensor) -> HeldInput:
        """Start to copy x."""
        held = HeldInput(self, x)
        self._held.append(weakref.ref(held))
        return held

    def returned(self, held: HeldInput) -> None:
        """An input is back: the one that was given before it is needed next, and starts its way."""
        alive = [reference for reference in self._held if reference() not in (None, held)]
        self._held = alive
        before = alive[-1]() if alive else None
        if before is not None:
            before.start_back()


class HeldInput:
    """The input of a block. What is called first takes it as it came; later it comes back from the host.

    Args:
        memory: that it is copied to.
        x: the input.
    """

    def __init__(self, memory: HostMemory, x: Tensor) -> None:
        self.memory, self.needs_gradient = memory, x.requires_grad
        self._first: Tensor | None = x
        self._back: Tensor | None = None
        self._like = x.device, x.shape, x.dtype
        self._host: Tensor | None = None
        if not has_content():
            return
        stream = memory.stream
        self._host = torch.empty(x.shape, dtype=x.dtype, pin_memory=stream is not None)
        if stream is None:
            self._host.copy_(x.detach())
            return
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            self._host.copy_(x.detach(), non_blocking=True)
        x.record_stream(stream)  # its memory is not given away before it is copied

    def take(self) -> Tensor:
        """The input, on the device."""
        first, self._first = self._first, None
        if first is not None:
            return first
        self.start_back()
        x, self._back = self._back, None
        assert x is not None
        stream = self.memory.stream
        if stream is not None:
            current = torch.cuda.current_stream(x.device)
            current.wait_stream(stream)
            x.record_stream(current)
        self.memory.returned(self)
        return x.requires_grad_(self.needs_gradient)

    def start_back(self) -> None:
        """Copy it to the device, unless it is on its way."""
        if self._first is not None or self._back is not None:
            return
        device, shape, dtype = self._like
        stream = self.memory.stream
        if stream is None:
            self._back = torch.empty(shape, dtype=dtype, device=device)
            if self._host is not None:
                self._back.copy_(self._host)
            return
        assert self._host is not None
        with torch.cuda.stream(stream):
            self._back = self._host.to(device, non_blocking=True)


def recomputed(block: Callable[..., Any], x: Tensor, *rest: Any, memory: HostMemory | None = None) -> Any:
    """What a block gives, without keeping more than its inputs.

    Args:
        block: called with x and the rest.
        x: (B, T, d_model) its input.
        rest: what all blocks share.
        memory: where x lies until the backward pass; None: it stays.
    """
    if memory is None:
        return checkpoint(block, x, *rest, use_reentrant=False)
    held = memory.hold(x)
    return checkpoint(lambda *more: block(held.take(), *more), *rest, use_reentrant=False)
