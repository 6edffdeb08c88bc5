"""Key/value caches on preallocated memory: all tokens, or the kept first tokens and a ring of the last ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modern_llm.models.attention.joining import at_the_end, joined_marks, joined_states
from modern_llm.models.attention.layers import AttentionView
from modern_llm.models.attention.rotary import Rotation, rotate
from modern_llm.models.attention.trunks import Trunks
from modern_llm.models.config import ModernLLMConfig


class KVCache:
    """Rotated keys and values of the layers that see alike, for B texts.

    A full cache holds `max_tokens`. With an attention window (sliding window, or sinks), a longer text keeps its
    first `view.kept_tokens` tokens and a ring of its last `view.window`.

    Args:
        config: shapes.
        view: what the layers see.
        layers: their numbers in the model.
        batch_size: texts B.
        max_tokens: tokens that each text will have, prompt and continuation; None: unbounded, which needs a window.
        dtype, device: of the stored tensors.

    Attributes:
        length: tokens seen so far, padding included.
        capacity: tokens C of each text that there is room for, beside those in `trunks`.
        positions: (B, C) position of every slot's token in its text, or None where no text is padded.
        real: (B, C) False at padding, or None where no text is padded.
        real_tokens: (B, 1) tokens seen so far without padding, or None where no text is padded.
        trunks: what several texts go on from, which is held once, in front of what each has of its own; None: nothing.

    Raises:
        ValueError: unbounded, and the model has no window.
    """

    def __init__(
        self,
        config: ModernLLMConfig,
        view: AttentionView,
        layers: list[int],
        batch_size: int,
        max_tokens: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config, self.view, self.layers = config, view, layers
        window, self.kept = view.window if view.keeps_keys else 1, view.kept_tokens
        if window is not None and (max_tokens is None or max_tokens > window + self.kept):
            self.ring, self.capacity = True, window + self.kept
        elif max_tokens is not None:
            self.ring, self.capacity = False, max_tokens
        else:
            raise ValueError(
                "max_tokens=None: an unbounded stream needs a model with an attention window. "
                "Set model.use_attention_sinks=true, or give a number of tokens."
            )
        self._keys, self._values = self._memory(batch_size, self.capacity, dtype, device)
        # Kept keys at their own positions: in `_keys` they turn with the window.
        self._kept_keys: list[Tensor | None] = [None] * len(layers)
        self.length = 0
        self.positions: Tensor | None = None
        self.real: Tensor | None = None
        self.real_tokens: Tensor | None = None
        self.trunks: Trunks | None = None
        self.reversible, self._last_pass = False, 0
        # What the last pass took the place of in a ring: the tokens that came, and by layer what lay in their slots.
        self._arrived: list[int] = []
        self._replaced: dict[int, tuple[Tensor, Tensor]] = {}

    def _memory(self, rows: int, tokens: int, dtype: torch.dtype, device: torch.device) -> list[list[Tensor]]:
        """For keys and for values of each layer (B, C, Hkv, D), in memory with the tokens of one head side by side, as
        attention reads them."""
        shape = (rows, self.config.n_kv_heads, tokens, self.config.head_size)
        return [[torch.empty(shape, dtype=dtype, device=device).transpose(1, 2) for _ in self.layers] for _ in "kv"]

    @property
    def shared(self) -> int:
        """Tokens that lie in `trunks`."""
        return 0 if self.trunks is None else self.trunks.length

    def _slot(self, position: int) -> int:
        if not self.ring or position < self.kept:
            return position - self.shared
        return self.kept + (position - self.kept) % (self.capacity - self.kept)

    def _survivors(self, start: int, stop: int) -> list[int]:
        """Of the tokens start..stop-1, those that are still held once token stop-1 is in."""
        if not self.ring:
            return list(range(start, stop))
        oldest = stop - (self.capacity - self.kept)
        return [*range(start, min(stop, self.kept)), *range(max(start, self.kept, oldest), stop)]

    def held(self) -> list[int]:
        """Indices of the tokens held, ascending."""
        return self._survivors(0, self.length)

    def held_slots(self) -> Tensor:
        """Where the tokens of `held` lie: (n,)."""
        return torch.tensor([self._slot(i) for i in self.held()], device=self._keys[0].device)

    def extend(self, layer: int, keys: Tensor, values: Tensor, sink_turn: Rotation | None) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, T, Hkv, D) behind the tokens seen so far.

        `length` moves once per forward pass, in `advance`, after every layer has been extended.

        Args:
            sink_turn: for one token, what moves the kept keys to their distance inside the window; None: they stay.

        Returns:
            Keys and values of all tokens that were held and of the new ones, (B, n, Hkv, D) each: oldest first, or, for
            one token, which sees them all, as they lie. What lies in `trunks` is not among them.

        Raises:
            ValueError: a full cache has no room for them.
        """
        start, stop = self.length, self.length + keys.shape[1]
        if not self.ring:
            self._write(layer, keys, values)
            return self._keys[layer][:, : stop - self.shared], self._values[layer][:, : stop - self.shared]
        if start and stop - start == 1:
            self._write(layer, keys, values)
            kept = self._kept_keys[layer]
            if sink_turn is not None and kept is not None:
                self._keys[layer][:, : self.kept] = rotate(kept, sink_turn)
            filled = min(stop, self.capacity)
            return self._keys[layer][:, :filled], self._values[layer][:, :filled]
        if start == 0:
            self._write(layer, keys, values)
            return keys, values
        old_keys, old_values = self._in_order(layer)
        self._write(layer, keys, values)
        dtype = old_keys.dtype
        return torch.cat([old_keys, keys.to(dtype)], dim=1), torch.cat([old_values, values.to(dtype)], dim=1)

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        start, stop = self.length, self.length + keys.shape[1]
        if not self.ring:
            if stop - self.shared > self.capacity:
                room = self.shared + self.capacity
                raise ValueError(
                    f"the cache holds {room} tokens and was given {stop}. Ask new_cache for more max_tokens."
                )
            own = slice(start - self.shared, stop - self.shared)
            self._keys[layer][:, own], self._values[layer][:, own] = keys, values
            return
        if self.reversible and stop - start > 1:
            self._set_aside(layer, start, stop)
        if stop - start == 1:
            slot = self._slot(start)
            self._keys[layer][:, slot] = keys[:, 0]
            self._values[layer][:, slot] = values[:, 0]
        else:
            survivors = self._survivors(start, stop)
            slots = torch.tensor([self._slot(i) for i in survivors], device=keys.device)
            source = torch.tensor([i - start for i in survivors], device=keys.device)
            dtype = self._keys[layer].dtype
            self._keys[layer].index_copy_(1, slots, keys.index_select(1, source).to(dtype))
            self._values[layer].index_copy_(1, slots, values.index_select(1, source).to(dtype))
        if start < self.kept:
            self._kept_keys[layer] = self._keys[layer][:, : self.kept].clone()

    def _set_aside(self, layer: int, start: int, stop: int) -> None:
        """Copy what tokens start..stop-1 are about to take the place of."""
        self._arrived = self._survivors(start, stop)
        slots = torch.tensor([self._slot(i) for i in self._arrived], device=self._keys[layer].device)
        self._replaced[layer] = self._keys[layer].index_select(1, slots), self._values[layer].index_select(1, slots)

    def forgettable(self, tokens: int) -> int:
        """How many tokens, at least the last `tokens`, `forget` can take back: all of the last pass where it was longer
        than the ring, which did not keep them."""
        return tokens if not self.ring or self._last_pass <= self.capacity - self.kept else self._last_pass

    def forget(self, tokens: int) -> None:
        """Take the last `tokens` tokens back, a number that `forgettable` gave. Needs `reversible`, and texts without
        padding."""
        self.length, self._last_pass = self.length - tokens, self._last_pass - tokens
        back = [place for place, token in enumerate(self._arrived) if token >= self.length]
        if not self.ring or not back:
            return
        source = torch.tensor(back, device=self._keys[0].device)
        slots = torch.tensor([self._slot(self._arrived[place]) for place in back], device=source.device)
        for layer, (keys, values) in self._replaced.items():
            self._keys[layer].index_copy_(1, slots, keys.index_select(1, source))
            self._values[layer].index_copy_(1, slots, values.index_select(1, source))

    def _in_order(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens held, oldest first, every key at its own position: (B, n, Hkv, D) each."""
        slots = self.held_slots()
        keys, values = self._keys[layer].index_select(1, slots), self._values[layer].index_select(1, slots)
        kept = self._kept_keys[layer]
        if kept is not None:
            keys[:, : self.kept] = kept[:, : len(slots)]
        return keys, values

    def real_with_next(self, real: Tensor) -> Tensor:
        """(B, n) False at padding, of everything that `extend` gives back for one more token, itself real (B, 1) or
        not."""
        filled = min(self.length - self.shared + 1, self.capacity)
        slot = self._slot(self.length)
        held = real.new_ones(len(real), filled) if self.real is None else self.real[:, :filled].clone()
        held[:, slot] = real[:, 0]
        return held

    def repeated(self, batch_size: int, max_tokens: int | None) -> KVCache:
        """A cache for `batch_size` texts that all begin with the one text held here.

        Args:
            max_tokens: tokens that each text will have, those held included; None: unbounded.
        """
        keys = self._keys[0]
        copy = KVCache(self.config, self.view, self.layers, batch_size, max_tokens, keys.dtype, keys.device)
        if self.ring and not copy.ring:
            raise ValueError(f"max_tokens={max_tokens}: fewer than the {self.length} that are held. Raise it.")
        for layer in range(len(self._keys)):
            if self.ring:
                copy._keys[layer][:], copy._values[layer][:] = self._keys[layer], self._values[layer]
                kept = self._kept_keys[layer]
                copy._kept_keys[layer] = None if kept is None else kept.repeat(batch_size, 1, 1, 1)
            elif self.length:
                held = [t[layer][:, : self.length].expand(batch_size, -1, -1, -1) for t in (self._keys, self._values)]
                copy._write(layer, *held)
        copy.length = self.length
        return copy

    def share(self, owners: Sequence[int]) -> None:
        """Hold a text for each of the owners (B,), which goes on from the one of that number that is held now: those
        become `trunks`. Not for a ring; what follows comes one token at a time."""
        keys, values = (
            [t.transpose(1, 2)[:, :, : self.length].contiguous().transpose(1, 2) for t in held]
            for held in (self._keys, self._values)
        )
        real = None if self.real is None else self.real[:, : self.length]
        self.trunks = Trunks(dict(zip(self.layers, keys, strict=True)), dict(zip(self.layers, values, strict=True)),
                             real, owners)  # fmt: skip
        B, dtype, device = len(owners), keys[0].dtype, keys[0].device
        self.capacity -= self.length
        self._keys, self._values = self._memory(B, self.capacity, dtype, device)
        for states in (*self._keys, *self._values):
            states[:, :1] = 0  # what `joined_states` takes as padding
        self._keep_marks(torch.tensor(owners, device=device))
        if self.real is not None and self.positions is not None:  # what the trunks do not know themselves
            self.real = self.real.new_ones(B, self.capacity)
            self.positions = self.positions.new_zeros(B, self.capacity)

    def keep(self, rows: Tensor) -> None:
        """Hold the texts of the rows (n,) alone, each as often as it is named."""
        for held in (self._keys, self._values):
            for layer, tensor in enumerate(held):  # one after the other: both would lie in memory
                held[layer] = tensor.transpose(1, 2)[rows].transpose(1, 2)
        self._kept_keys = [None if kept is None else kept[rows] for kept in self._kept_keys]
        self._keep_marks(rows)
        if self.trunks is not None:
            self.trunks.keep(rows.tolist())

    def _keep_marks(self, rows: Tensor) -> None:
        self.positions, self.real, self.real_tokens = (
            None if marks is None else marks[rows] for marks in (self.positions, self.real, self.real_tokens)
        )

    def join(
        self, rows: Tensor, other: KVCache | None, length: int, shared: int = 0, forgotten: Tensor | None = None
    ) -> None:
        """Hold the texts of the rows (n,), each as often as it is named and without its last `forgotten` (n,) tokens,
        and, behind them, those of another cache. All stand at the end of `length` tokens with padding in front, of
        which `shared` are of trunks; neither is a ring, both have trunks or none, and no text and no trunk is longer.
        """
        caches = [self] if other is None else [self, other]
        for cache in caches:
            cache._mark_padding(len(cache._keys[0]))
        self._keep_marks(rows)
        if forgotten is not None:
            self._unread(forgotten)
        real = [cache.real for cache in caches if cache.real is not None]
        positions = [cache.positions for cache in caches if cache.positions is not None]
        own = [cache.length - cache.shared for cache in caches]
        orders = [at_the_end(r[:, :tokens], length - shared) for r, tokens in zip(real, own, strict=True)]
        if self.trunks is not None:
            self.trunks.keep(rows.tolist())
            self.trunks.join(None if other is None else other.trunks, shared)
        for layer in range(len(self._keys)):
            for held in ("_keys", "_values"):
                states = [getattr(cache, held)[layer].transpose(1, 2) for cache in caches]
                getattr(self, held)[layer] = joined_states(states, orders, self.capacity, rows).transpose(1, 2)
        self.real, self.positions = (joined_marks(marks, orders, self.capacity) for marks in (real, positions))
        self.real_tokens = torch.cat([cache.real_tokens for cache in caches if cache.real_tokens is not None])
        self.length = length

    def _unread(self, forgotten: Tensor) -> None:
        """Make padding of the last tokens of each text, (B,) of them."""
        assert self.real is not None
        assert self.real_tokens is not None
        last = self.length - self.shared - forgotten[:, None]
        self.real = self.real & (torch.arange(self.capacity, device=last.device) < last)
        self.real_tokens = self.real_tokens - forgotten[:, None]

    def _mark_padding(self, rows: int) -> None:
        """Tell real tokens from padding where no text was padded so far."""
        if self.real is None or self.positions is None:
            device = self._keys[0].device
            self.real = torch.ones(rows, self.capacity, dtype=torch.bool, device=device)
            self.positions = torch.arange(self.shared, self.shared + self.capacity, device=device).repeat(rows, 1)
        if self.real_tokens is None:
            self.real_tokens = torch.full((rows, 1), self.length, device=self._keys[0].device)

    def advance(self, tokens: int, real: Tensor | None, positions: Tensor | None) -> None:
        """Count `tokens` more; real and positions (B, tokens) where any text is padded."""
        start, stop = self.length, self.length + tokens
        self._last_pass = tokens
        if real is not None:
            self._mark_padding(len(real))
        self.length = stop
        if real is None or positions is None:
            return
        assert self.real is not None
        assert self.positions is not None
        assert self.real_tokens is not None
        survivors = self._survivors(start, stop)
        slots = [self._slot(i) for i in survivors]
        source = [i - start for i in survivors]
        self.real[:, slots], self.positions[:, slots] = real[:, source], positions[:, source]
        self.real_tokens = self.real_tokens + real.sum(1, keepdim=True)
