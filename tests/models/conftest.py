"""Tiny models whose every weight matters: norms, biases and sinks are random too, and logits span several nats."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.config import GQAConfig

VOCABULARY = 61


def _loud(module: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw every parameter: matrices keep the scale of their input, vectors and embeddings get unit scale."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.dim() < 2 or "embed" in name or "sink" in name:
                parameter.copy_(noise)
            else:
                parameter.copy_(1.5 * noise / parameter.shape[-1] ** 0.5)
    return module.eval()


def _tiny(*, group_size: int = 1, seed: int = 0, **settings: Any) -> ModernDecoderLM:
    """A loud two-layer decoder with four heads of width 8; settings as in `ModernLLMConfig`."""
    shape = {"vocab_size": VOCABULARY, "max_seq_len": 24, "d_model": 32, "n_layers": 2, "ffn_hidden_size": 40}
    shape |= {"qk_norm": False}
    config = ModernLLMConfig(**(shape | {"gqa": GQAConfig(group_size)} | settings))
    model = ModernDecoderLM(config)
    _loud(model, seed)
    return model


def _token_ids(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small only wait for their helpers, without end where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def loud() -> Callable[..., nn.Module]:
    """Redraws the weights of a module in place and returns it in evaluation mode."""
    return _loud


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ModernDecoderLM]:
    """Builds a tiny decoder with loud weights."""
    return _tiny


@pytest.fixture(scope="session")
def token_ids() -> Callable[..., Tensor]:
    """Random ids of the tiny vocabulary, of the given shape."""
    return _token_ids
