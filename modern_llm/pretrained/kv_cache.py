"""Keys and values of a `transformers` decoder on preallocated memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from modern_llm.models.attention.joining import at_the_end, joined_marks, joined_states
from modern_llm.models.attention.trunks import Trunks
from modern_llm.models.kernels import additive_mask, compute_dtype, device_of, shares_keys


class _Layer(DynamicLayer):
    """One layer's keys and values (B, H, C, D), written in place: `DynamicLayer` would copy them all at every step."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens, self.length = max_tokens, 0
        self.shared = 0  # tokens of `length` that lie in trunks

    def _write(self, keys: Tensor, values: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Store (B, H, T, D) behind what is held, in memory for `batch_size` texts; returns all that is held then, but
        for what lies in trunks."""
        if self.keys is None or self.values is None:
            self.dtype, self.device = keys.dtype, keys.device
            shapes = [(batch_size, t.shape[1], self.max_tokens, t.shape[3]) for t in (keys, values)]
            self.keys, self.values = keys.new_empty(shapes[0]), values.new_empty(shapes[1])
            self.is_initialized = True
        start, stop = self.length, self.length + keys.shape[2]
        if stop > self.max_tokens:
            raise ValueError(
                f"the cache holds {self.max_tokens} tokens and was given {stop}. Ask new_cache for more max_tokens."
            )
        own = slice(start - self.shared, stop - self.shared)
        self.keys[:, :, own], self.values[:, :, own] = keys, values
        self.length = stop
        return self.keys[:, :, : own.stop], self.values[:, :, : own.stop]

    def shared_states(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Keys and values (P, L, H, D) of all tokens, which are no longer held here: what is left is for `batch_size`
        texts that go on from them."""
        assert self.keys is not None
        assert self.values is not None
        states = [t[:, :, : self.length].contiguous().transpose(1, 2) for t in (self.keys, self.values)]
        self.shared = self.length
        self.keys, self.values = (
            t.new_empty(batch_size, t.shape[1], self.max_tokens - self.shared, t.shape[3])
            for t in (self.keys, self.values)
        )
        self.keys[:, :, :1] = self.values[:, :, :1] = 0  # what `joined_states` takes as padding
        return states[0], states[1]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        # What autocast would make of all that is held in every step, made once.
        dtype = compute_dtype(key_states)
        return self._write(key_states.to(dtype), value_states.to(dtype), len(key_states))

    def get_seq_length(self) -> int:
        return self.length

    def __len__(self) -> int:
        """Texts."""
        return 0 if self.keys is None else len(self.keys)

    def repeated(self, batch_size: int, max_tokens: int) -> _Layer:
        layer = _Layer(max_tokens)
        if self.keys is not None and self.values is not None:
            layer._write(self.keys[:, :, : self.length], self.values[:, :, : self.length], batch_size)
        return layer


class HuggingFaceCache:
    """Keys and values of B texts, and which of them are padding.

    Args:
        n_layers: of the decoder.
        max_tokens: tokens that each text will have, padding included.

    Attributes:
        length: tokens seen so far, padding included.
        real: (B, length) False at padding, or None where no text is padded.
        trunks: what several texts go on from, which is held once, in front of what each has of its own; None: nothing.
        attended: layers whose attention to it is computed here, and not by `transformers`.

    Raises:
        ValueError: unbounded.
    """

    def __init__(self, n_layers: int, max_tokens: int | None) -> None:
        if max_tokens is None:
            raise ValueError("max_tokens=None: this model has no bounded cache. Give a number of tokens.")
        self.layers = [_Layer(max_tokens) for _ in range(n_layers)]
        self.states = Cache(layers=list(self.layers))
        self.real: Tensor | None = None
        self.trunks: Trunks | None = None
        self.attended: set[int] = set()
        self._pads_behind_trunks = False
        self._mask_behind_trunks: Tensor | None = None

    @property
    def length(self) -> int:
        return self.layers[0].length

    def extended_mask(self, attention_mask: Tensor | None, batch_size: int, tokens: int) -> Tensor | None:
        """(B, length + tokens) mask over what is held and `tokens` more, remembered; None where nothing is padded."""
        if attention_mask is None and self.real is None:
            return None
        device = self.real.device if attention_mask is None and self.real is not None else None
        if attention_mask is None:
            new = torch.ones(batch_size, tokens, dtype=torch.bool, device=device)
        else:
            new = attention_mask.bool()
        old = new.new_ones(batch_size, self.length) if self.real is None else self.real
        self.real, self._mask_behind_trunks = torch.cat([old, new], dim=1), None
        return self.real

    def mask_behind_trunks(self, dtype: torch.dtype) -> Tensor | None:
        """(B, 1, 1, n) additive, of what each text has of its own; None: all is seen. Within a pass."""
        if self._pads_behind_trunks and self._mask_behind_trunks is None and self.trunks and self.real is not None:
            self._mask_behind_trunks = additive_mask(self.real[:, None, None, self.trunks.length :], dtype)
        return self._mask_behind_trunks

    def share(self, owners: Sequence[int], always: bool = False) -> bool:
        """Hold a text for each of the owners (B,), which goes on from the one of that number that is held now: those
        are held once. What follows comes one token at a time. False: it does not pay, unless it is to be `always` so,
        or this cache cannot, because the model, as its passes have shown, computes the attention of some layer in its
        own way; it holds what it held."""
        keys = self.layers[0].keys
        if keys is None or self.attended != set(range(len(self.layers))):
            return False
        copies = (len(owners) - len(keys)) * self.length
        if not always and not shares_keys(copies * keys.shape[1] * keys.shape[3], device_of(keys)):
            return False
        states = dict(enumerate(layer.shared_states(len(owners)) for layer in self.layers))
        of_keys, of_values = ({number: pair[i] for number, pair in states.items()} for i in range(2))
        self.trunks = Trunks(of_keys, of_values, self.real, owners)
        if self.real is not None:
            self.real = self.real[torch.tensor(owners, device=self.real.device)]
        return True

    def keep(self, rows: Tensor) -> bool:
        """Hold the texts of the rows (n,) alone, each as often as it is named; always possible here."""
        if self.trunks is not None:
            self.trunks.keep(rows.tolist())
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.real = None if self.real is None else self.real[rows]
        return True

    joins = forgets_apart = True

    def join(
        self,
        rows: Tensor,
        other: HuggingFaceCache | None,
        length: int,
        shared: int = 0,
        forgotten: Tensor | None = None,
    ) -> None:
        """As `DecoderCache.join`."""
        self.real = None if self.real is None else self.real[rows]
        if forgotten is not None:
            read = torch.arange(self.length, device=rows.device) < self.length - forgotten[:, None]
            self.real = read if self.real is None else self.real & read
        caches = [self] if other is None else [self, other]
        counts = [len(rows)] + [len(cache.layers[0]) for cache in caches[1:]]
        real = [
            torch.ones(count, cache.length, dtype=torch.bool, device=rows.device) if cache.real is None else cache.real
            for count, cache in zip(counts, caches, strict=True)
        ]
        in_front = [marks[:, : cache.layers[0].shared] for marks, cache in zip(real, caches, strict=True)]
        own = [marks[:, cache.layers[0].shared :] for marks, cache in zip(real, caches, strict=True)]
        orders = [at_the_end(marks, length - shared) for marks in own]
        self.real = joined_marks(own, orders, length - shared)
        if self.trunks is not None:
            self.trunks.keep(rows.tolist())
            self.trunks.join(None if other is None else other.trunks, shared)
            trunks = joined_marks(in_front, [at_the_end(marks, shared) for marks in in_front], shared)
            self.real, self._pads_behind_trunks = torch.cat([trunks, self.real], 1), True
        for i, layer in enumerate(self.layers):
            room = layer.max_tokens - layer.shared
            for held in ("keys", "values"):
                states = [getattr(cache.layers[i], held) for cache in caches]
                setattr(layer, held, joined_states(states, orders, room, rows))
            layer.length, layer.shared, layer.max_tokens = length, shared, shared + room

    def make_reversible(self) -> bool:
        """From here on, let the last tokens be forgotten again; always possible here."""
        return True

    def forget(self, tokens: int) -> None:
        """Forget the last `tokens` tokens."""
        for layer in self.layers:
            layer.length -= tokens
        self.real = None if self.real is None else self.real[:, : self.length]

    def repeated(self, batch_size: int, max_tokens: int) -> HuggingFaceCache:
        """A cache for `batch_size` texts that all begin with the one text held here."""
        copy = HuggingFaceCache(0, max_tokens)
        copy.layers = [layer.repeated(batch_size, max_tokens) for layer in self.layers]
        copy.states = Cache(layers=list(copy.layers))
        copy.real = None if self.real is None else self.real.repeat(batch_size, 1)
        copy.attended = set(self.attended)
        return copy


class Seq2SeqCache(HuggingFaceCache):
    """Keys and values of the decoder's own tokens, and of the encoder's, which are computed once."""

    def __init__(self, n_layers: int, max_tokens: int | None) -> None:
        super().__init__(n_layers, max_tokens)
        self.states = EncoderDecoderCache(Cache(layers=list(self.layers)), DynamicCache())

    joins = forgets_apart = False  # the encoder's states belong to all texts

    def keep(self, rows: Tensor) -> bool:
        """Not possible: the encoder's states belong to all texts."""
        return False
