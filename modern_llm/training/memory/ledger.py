"""Every byte of tensors while something runs: what is alive, what it is for, and where the most of it was."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

PURPOSES = ("weights", "average", "gradients", "optimizer", "activations", "workspace")
_WEIGHTS, _ACTIVATIONS, _WORKSPACE = PURPOSES[0], PURPOSES[4], PURPOSES[5]


class Ledger:
    """Memory of tensors by purpose, each storage counted once, from when it is made until nobody holds it.

    Args:
        block: bytes that the allocator gives in multiples of: 512 on CUDA, 64 on a CPU.
        factor: on activations, for what keeps more or less of them than is entered.

    Attributes:
        now: bytes alive by purpose.
        peak: the same where their sum was largest.
    """

    def __init__(self, block: int, factor: float = 1.0) -> None:
        self.block, self.factor = block, factor
        self.now = dict.fromkeys(PURPOSES, 0.0)
        self.peak = dict(self.now)
        self._most = self._sum = 0.0
        self._held: dict[int, tuple[Any, int, str]] = {}

    def note(self, tensor: Tensor, purpose: str = _WORKSPACE) -> None:
        """A tensor is there; one that is known already keeps its purpose."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        size = -(-storage.nbytes() // self.block) * self.block

        def let_go(_: Any, key: int = key) -> None:
            _, size, purpose = self._held.pop(key)
            self.now[purpose] -= size
            self._sum -= size

        self._held[key] = (weakref.ref(storage, let_go), size, purpose)
        self.now[purpose] += size
        self._sum += size
        self._look(0)

    def passing(self, size: float) -> None:
        """A kernel holds so many bytes while it runs."""
        self._look(size)

    def _look(self, passing: float) -> None:
        more = (self.factor - 1) * self.now[_ACTIVATIONS]
        if self._sum + passing + more > self._most:
            self._most = self._sum + passing + more
            self.peak = dict(self.now)
            self.peak[_WORKSPACE] += passing
            self.peak[_ACTIVATIONS] += more

    def rename(self, tensors: Iterable[Tensor], purpose: str, only: tuple[str, ...] = PURPOSES) -> None:
        """What tensors are for is known now; those for another purpose than `only` keep theirs."""
        for tensor in tensors:
            key = tensor.untyped_storage()._cdata
            if key in self._held and self._held[key][2] in only:
                reference, size, before = self._held[key]
                self._held[key] = (reference, size, purpose)
                self.now[before] -= size
                self.now[purpose] += size

    def keep(self, tensor: Tensor) -> Tensor:
        """For `saved_tensors_hooks`: the backward pass will need a tensor."""
        self.rename([tensor], _ACTIVATIONS, (_WORKSPACE,))
        self._look(0)
        return tensor

    def purpose_of(self, tensor: Tensor) -> str | None:
        """What a tensor is for; None: it was made outside."""
        held = self._held.get(tensor.untyped_storage()._cdata)
        return None if held is None else held[2]

    def forget_peak(self) -> None:
        """From here on the peak is that of what follows."""
        self._most, self.peak = 0.0, dict(self.now)
        self._look(0)


def note_result(ledger: Ledger, func: Any, args: tuple[Any, ...], out: Any) -> None:
    """Enter what an operation gave. A weight in another precision is one still."""
    copied = func is torch.ops.aten._to_copy.default and ledger.purpose_of(args[0]) == _WEIGHTS
    for tensor in out if isinstance(out, list | tuple) else (out,):
        if isinstance(tensor, Tensor):
            ledger.note(tensor, _WEIGHTS if copied else _WORKSPACE)
