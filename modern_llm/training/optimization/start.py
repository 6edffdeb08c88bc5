"""torch's optimisers without torch's compiler, which they import at their first call though nothing is compiled: that
takes as long as to import torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from modern_llm.models.kernels import may_be_compiled

_HIDDEN = ("add_param_group", "state_dict", "load_state_dict", "zero_grad")
_HELD = "__dynamo_disable"  # where torch looks for what to call


def import_compiler_late() -> None:
    """From here on, what torch hides of optimisers from its compiler is called as it is until that is imported: before,
    there is nobody to hide it from."""
    for name in _HIDDEN:
        hidden = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if hidden is not None:
            vars(hidden).setdefault(_HELD, _once_there_is_one(hidden))


def _once_there_is_one(hidden: Callable[..., Any]) -> Callable[..., Any]:
    def call(*given: Any, **named: Any) -> Any:
        if not may_be_compiled():
            return hidden(*given, **named)
        found = torch._dynamo.disable(hidden, wrapping=False)
        vars(hidden)[_HELD] = found
        return found(*given, **named)

    return call
