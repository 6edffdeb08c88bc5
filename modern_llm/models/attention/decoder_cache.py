"""What a decoder remembers of the texts that it writes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from modern_llm.models.attention.kv_cache import KVCache
from modern_llm.models.attention.layers import AttentionView
from modern_llm.models.attention.rotary import Rotation
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.kernels import device_of, shares_keys


class DecoderCache:
    """What a decoder remembers of B texts: a `KVCache` for all layers that see alike, and the last of what parts in
    front of the blocks look back at.

    Args:
        config: shapes and views.
        batch_size, max_tokens, dtype, device: as in `KVCache`; `max_tokens=None` needs a window in every layer.

    Attributes:
        parts: the caches, one for each different view.
        last: (B, 1, ...) of the last real token of every text, by name.
    """

    def __init__(
        self,
        config: ModernLLMConfig,
        batch_size: int,
        max_tokens: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        layers: dict[AttentionView, list[int]] = {}
        for layer, view in enumerate(config.views):
            layers.setdefault(view, []).append(layer)
        self.parts = [
            KVCache(config, view, members, batch_size, max_tokens, dtype, device) for view, members in layers.items()
        ]
        self.last: dict[Hashable, Tensor] = {}
        # `last` in front of the last pass, and behind it.
        self._earlier: dict[Hashable, Tensor] = {}
        self._now: dict[Hashable, Tensor] = {}
        self._index()

    def _index(self) -> None:
        self._places = {layer: (part, i) for part in self.parts for i, layer in enumerate(part.layers)}
        self._views = {part.view: part for part in self.parts}

    @property
    def length(self) -> int:
        """Tokens seen so far, padding included."""
        return self.parts[0].length

    def of(self, view: AttentionView) -> KVCache:
        """The cache of the layers that see `view`."""
        return self._views[view]

    def extend(self, layer: int, keys: Tensor, values: Tensor, sink_turn: Rotation | None) -> tuple[Tensor, Tensor]:
        """`KVCache.extend` for a layer of the model."""
        part, i = self._places[layer]
        return part.extend(i, keys, values, sink_turn)

    def advance(self, passes: Sequence[tuple[int, Tensor | None, Tensor | None]]) -> None:
        """`KVCache.advance` of every part, in their order, with these arguments."""
        for part, told in zip(self.parts, passes, strict=True):
            part.advance(*told)
        if self.parts[0].reversible:
            self._earlier, self._now = self._now, dict(self.last)

    def make_reversible(self) -> bool:
        """From here on, let the last tokens be forgotten again. False: texts are padded."""
        if any(part.real is not None for part in self.parts):
            return False
        for part in self.parts:
            part.reversible = True
        self._now = dict(self.last)
        return True

    def forget(self, tokens: int) -> None:
        """Forget at least the last `tokens` tokens of the last pass, all of it where parts look back or a ring was
        shorter. Needs `make_reversible` in front of that pass."""
        if self.last:
            tokens = self.parts[0]._last_pass
            self.last, self._now = dict(self._earlier), self._earlier
        tokens = max(part.forgettable(tokens) for part in self.parts)
        for part in self.parts:
            part.forget(tokens)

    def repeated(self, batch_size: int, max_tokens: int | None) -> DecoderCache:
        """A cache for `batch_size` texts that all begin with the one text held here; arguments as in `KVCache`."""
        copy = object.__new__(DecoderCache)
        copy.parts = [part.repeated(batch_size, max_tokens) for part in self.parts]
        copy._earlier, copy._now = {}, {}
        copy.last = {name: last.expand(batch_size, *last.shape[1:]) for name, last in self.last.items()}
        copy._index()
        return copy

    def keep(self, rows: Tensor) -> bool:
        """Hold the texts of the rows (n,) alone, each as often as it is named; always possible here."""
        for part in self.parts:
            part.keep(rows)
        self.last = {name: last[rows] for name, last in self.last.items()}
        return True

    def share(self, owners: Sequence[int], always: bool = False) -> bool:
        """Hold a text for each of the owners (B,), which goes on from the one of that number that is held now: those
        are held once. What follows comes one token at a time. False: this cache cannot, or it does not pay, unless it
        is to be `always` so, and it holds what it held. A ring cannot, whose first tokens leave it one by one, nor can
        what has no log-sum-exp: capped scores, and the parts of others."""
        config, keys = self.parts[0].config, self.parts[0]._keys[0]
        if config.attention_softcap is not None or config.attention or config.block or not self.joins:
            return False
        copies = (len(owners) - len(keys)) * self.length
        if not always and not shares_keys(copies * config.n_kv_heads * config.head_size, device_of(keys)):
            return False
        for part in self.parts:
            part.share(owners)
        rows = torch.tensor(owners, device=keys.device)
        self.last = {name: last[rows] for name, last in self.last.items()}
        return True

    @property
    def joins(self) -> bool:
        """Whether `join` is possible: nothing is evicted."""
        return not any(part.ring for part in self.parts)

    @property
    def forgets_apart(self) -> bool:
        """Whether `join` can forget another number of tokens of each text: nothing looks back by other means."""
        return self.joins and not self.last

    def join(
        self, rows: Tensor, other: DecoderCache | None, length: int, shared: int = 0, forgotten: Tensor | None = None
    ) -> None:
        """Hold the texts of the rows (n,), each as often as it is named and, where this cache `forgets_apart`, without
        its last `forgotten` (n,) tokens; and, behind them, those of another cache. None has more than `length` real
        tokens then; `length` becomes that, and padding stands in front of the shorter ones. Where prompts are shared,
        in both caches, `shared` of the tokens are those of the longest one, and padding stands in front of each."""
        added = [None] * len(self.parts) if other is None else other.parts
        for part, more in zip(self.parts, added, strict=True):
            part.join(rows, more, length, shared, forgotten)
        for name, last in self.last.items():
            self.last[name] = torch.cat([last[rows]] if other is None else [last[rows], other.last[name]])
