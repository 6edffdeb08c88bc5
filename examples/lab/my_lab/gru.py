"""A whole model that has no attention, and a cache of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modern_llm.checks import require
from modern_llm.models.custom import CustomModel

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class GRU(CustomModel):
    """A gated recurrent network (Cho et al. 2014, arXiv 1406.1078).

    Args:
        vocab_size, max_seq_len: as in `CustomModel`.
        width: of its state.
        n_layers: networks on top of each other.
    """

    width: int = 64
    n_layers: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.width >= 1, "model.width", self.width, "must be at least 1", "Raise it")

    def build(self) -> nn.Module:
        import torch
        from torch import Tensor, nn

        class State:
            """The network's state after each text.

            Attributes:
                state: (layers, B, width), or None before the first token.
                length: tokens seen so far.
            """

            state: Tensor | None = None
            length = 0

            def repeated(self, batch_size: int, max_tokens: int | None) -> State:
                copy = State()
                copy.length = self.length
                copy.state = None if self.state is None else self.state.expand(-1, batch_size, -1).contiguous()
                return copy

            def keep(self, rows: Tensor) -> bool:
                self.state = None if self.state is None else self.state[:, rows]
                return True

        class Network(nn.Module):
            def __init__(self, settings: GRU) -> None:
                super().__init__()
                assert settings.vocab_size is not None
                self.embedding = nn.Embedding(settings.vocab_size, settings.width)
                self.recurrent = nn.GRU(settings.width, settings.width, settings.n_layers, batch_first=True)
                self.head = nn.Linear(settings.width, settings.vocab_size, bias=False)

            def new_cache(self, batch_size: int, max_tokens: int | None) -> State:
                return State()

            def forward(
                self, input_ids: Tensor, attention_mask: Tensor | None = None, cache: State | None = None
            ) -> Tensor:
                x = self.embedding(input_ids)
                if cache is None:
                    return self.recurrent(x)[0]
                if attention_mask is None:
                    hidden, cache.state = self.recurrent(x, cache.state)
                else:
                    hidden, cache.state = self._padded(x, attention_mask.bool(), cache.state)
                cache.length += input_ids.shape[1]
                return hidden

            def _padded(self, x: Tensor, real: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
                """Token by token: padding leaves the state as it is."""
                layers, hidden = self.recurrent.num_layers, list[Any]()
                now = x.new_zeros(layers, len(x), self.recurrent.hidden_size) if state is None else state
                for place in range(x.shape[1]):
                    given, after = self.recurrent(x[:, place : place + 1], now)
                    now = torch.where(real[None, :, place, None], after, now)
                    hidden.append(given)
                return torch.cat(hidden, 1), now

        return Network(self)
