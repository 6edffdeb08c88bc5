"""A device apart from the host, on a machine without one: what the host reads from it is counted.

A tensor on it is a wrapper whose device is `meta` around one on the CPU, which computes. What stays on the device gives
wrappers again; what the host needs of a value (a number, a copy, a size that depends on values) is one read, for which
a GPU would have to be waited for.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.optim.optimizer  # torch.optim hides its name
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from modern_llm.models import kernels
from modern_llm.models.feed_forward import experts
from modern_llm.training.runtime import Runtime

APART = torch.device("meta")
aten = torch.ops.aten
optimizer = sys.modules["torch.optim.optimizer"]
VALUES_NEEDED = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten.is_nonzero.default,
    aten.equal.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
reads: Counter[str] = Counter()  # by the line of ours that asked


class Apart(torch.Tensor):
    """A tensor on the device."""

    on_cpu: torch.Tensor

    @staticmethod
    def __new__(cls, on_cpu: torch.Tensor) -> Apart:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, on_cpu.shape, strides=on_cpu.stride(), storage_offset=on_cpu.storage_offset(), dtype=on_cpu.dtype,
            device=APART, requires_grad=on_cpu.requires_grad,
        )  # fmt: skip
        made.on_cpu = on_cpu
        return made

    def __repr__(self, **more: Any) -> str:
        return f"Apart({self.on_cpu!r})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.tolist, torch.Tensor.numpy):
            return func(args[0].detach().to("cpu"))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    wrappers: dict[int, Apart] = {}

    def unwrapped(value: Any) -> Any:
        if isinstance(value, Apart):
            wrappers[id(value.on_cpu)] = value
            return value.on_cpu
        return value

    plain, named = tree_map(unwrapped, args), tree_map(unwrapped, kwargs)
    stays = bool(wrappers)
    needs_values = func in VALUES_NEEDED
    if func in INDEXING:
        needs_values = any(index is not None and index.dtype == torch.bool for index in plain[1])
    if func is aten.copy_.default and not isinstance(args[0], Apart):
        needs_values, stays = True, False
    if named.get("device") is not None:
        if torch.device(named["device"]) == APART:
            named["device"], stays = torch.device("cpu"), True
        else:
            needs_values, stays = True, False
    if wrappers and needs_values:
        reads[_asked_by()] += 1
    out = func(*plain, **named)
    if not stays:
        return out
    return tree_map(lambda t: wrappers.get(id(t), Apart(t)) if isinstance(t, torch.Tensor) else t, out)


def _asked_by() -> str:
    ours = [frame for frame in traceback.extract_stack() if "/modern_llm/" in frame.filename]
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "elsewhere"


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Constructors(TorchFunctionMode):
    """Which make a tensor from numbers without asking for an operator."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == APART:
            del kwargs["device"]
            return func(*args, **kwargs).to(APART)
        return func(*args, **kwargs)


@contextmanager
def device_apart(patch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Within it a `Runtime` has such a device; gives the counts, which may be cleared."""
    torch_autocast, enabled, generator = torch.autocast, torch.is_autocast_enabled, torch.Generator
    supported = optimizer._get_fused_kernels_supported_devices

    class Generator(generator):  # type: ignore[misc, valid-type]
        def __new__(cls, device: Any = "cpu") -> Any:
            return generator.__new__(generator, "cpu" if torch.device(device) == APART else device)

    patch.setattr(torch, "autocast", lambda kind, **k: nullcontext() if kind == "meta" else torch_autocast(kind, **k))
    patch.setattr(torch, "is_autocast_enabled", lambda *kind: kind != ("meta",) and enabled(*kind))
    patch.setattr(torch, "Generator", Generator)
    patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported(), "meta"])
    patch.setattr(Runtime, "_choose_device", lambda self: "meta")
    # The card of which all is asked below.
    patch.setattr(kernels, "device_of", lambda x: kernels.Device("cuda", (9, 0)))
    patch.setattr(experts, "takes_grouped_products", lambda *facts: True)
    reads.clear()
    with _Constructors(), _Operators():
        yield reads
