"""This project's decoders in transformers' Auto classes: `AutoModelForCausalLM.from_pretrained(<run folder>)`.

Nothing of transformers is loaded before the person loads it: `announce` waits for its list of configurations.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_LIST = "transformers.models.auto.configuration_auto"


def announce() -> None:
    """Make the model type known to transformers, now or as soon as it is imported."""
    if _LIST in sys.modules:
        _register()
    elif not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def _register() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    from modern_llm.auto.configuration import ModernLLMAutoConfig

    AutoConfig.register(ModernLLMAutoConfig.model_type, ModernLLMAutoConfig, exist_ok=True)


class _Waiting(MetaPathFinder):
    """Registers once transformers' list has been loaded."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != _LIST:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader)
        return spec


class _ThenRegister(Loader):
    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.inner.exec_module(module)
        _register()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)
