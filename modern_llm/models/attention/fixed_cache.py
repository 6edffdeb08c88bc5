"""A cache for one-token steps that are compiled: nothing in it changes its shape, and its length lies on the device, so
that one graph serves all steps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.attention.decoder_cache import DecoderCache
from modern_llm.models.attention.kv_cache import KVCache
from modern_llm.models.attention.layers import AttentionView
from modern_llm.models.attention.rotary import NoRotation, Rotary, Rotation, rotate
from modern_llm.models.kernels import additive_mask


class FixedPart:
    """What layers that see alike hold, in the memory of a `KVCache`, whose rules it follows for one real token a step.

    Args:
        held: with at least its kept first tokens.

    Attributes:
        length: () tokens seen so far, padding included.
        slot: (1,) where the next token goes; `plan` sets it.
    """

    def __init__(self, held: KVCache) -> None:
        self.held, self.view, self.kept, self.ring, self.capacity = held, held.view, held.kept, held.ring, held.capacity
        self.keys, self.values = held._keys, held._values
        self.kept_keys = [kept for kept in held._kept_keys if kept is not None]
        device = held._keys[0].device
        self.length = torch.tensor(held.length, device=device)
        self.places = torch.arange(held.capacity, device=device)
        # What was never written is masked, but 0 times what is no number would be none.
        for states in (*self.keys, *self.values):
            states[:, min(held.length, held.capacity) :] = 0
        self.real, self.real_tokens = held.real, held.real_tokens
        self.slot = self.length[None]

    def plan(self, rotary: Rotary | NoRotation, dtype: torch.dtype) -> tuple[Tensor, Rotation | None, Rotation | None]:
        """Mask (1 or B, 1, 1, S + C), rotation and, in a ring, what moves the sinks, for the next token."""
        self.slot = self.length[None]
        if self.ring:
            inside = self.kept + (self.slot - self.kept) % (self.capacity - self.kept)
            self.slot = torch.where(self.slot < self.kept, self.slot, inside)
        visible = (self.places <= self.length)[None]  # (1, C)
        positions = self.length[None, None]
        if self.real is not None and self.real_tokens is not None:
            self.real.index_fill_(1, self.slot, True)
            visible, positions = visible & self.real, self.real_tokens
        mask = additive_mask(F.pad(visible[:, None], (self.view.learned_rows, 0), value=True)[:, None], dtype)
        turn = None
        if self.ring and self.view.rotary and self.view.sinks_rotated:
            # Inside the window nothing moves: that is a turn by no angle.
            last_place = self.capacity - 1
            turn = rotary.without_factor(rotary.at((positions - last_place).clamp(min=0), 0))
        return mask, rotary.at(positions, 0), turn

    def extend(self, layer: int, keys: Tensor, values: Tensor, sink_turn: Rotation | None) -> tuple[Tensor, Tensor]:
        """Store keys and values (B, 1, Hkv, D); gives all that there is room for, (B, C, Hkv, D) each."""
        self.keys[layer].index_copy_(1, self.slot, keys.to(self.keys[layer].dtype))
        self.values[layer].index_copy_(1, self.slot, values.to(self.values[layer].dtype))
        if sink_turn is not None and self.kept:
            self.keys[layer][:, : self.kept] = rotate(self.kept_keys[layer], sink_turn)
        return self.keys[layer], self.values[layer]

    def advance(self) -> None:
        """Count the token."""
        self.length.add_(1)
        if self.real_tokens is not None:
            self.real_tokens.add_(1)


class FixedCache:
    """What a decoder holds of B texts, for compiled steps of one token.

    Args:
        held: whose memory it takes, and gives back in `release`.
    """

    def __init__(self, held: DecoderCache) -> None:
        self.parts = [FixedPart(part) for part in held.parts]
        self._views = {part.view: part for part in self.parts}
        self._places = {layer: (part, i) for part in self.parts for i, layer in enumerate(part.held.layers)}

    def of(self, view: AttentionView) -> FixedPart:
        """The cache of the layers that see `view`."""
        return self._views[view]

    def extend(self, layer: int, keys: Tensor, values: Tensor, sink_turn: Rotation | None) -> tuple[Tensor, Tensor]:
        """`FixedPart.extend` for a layer of the model."""
        part, i = self._places[layer]
        return part.extend(i, keys, values, sink_turn)

    def advance(self, passes: object) -> None:
        """Count one token."""
        for part in self.parts:
            part.advance()

    def tensors(self) -> list[Tensor]:
        """All that steps read or write."""
        found: list[Tensor] = []
        for part in self.parts:
            found += [part.length, *part.keys, *part.values, *part.kept_keys]
            found += [marks for marks in (part.real, part.real_tokens) if marks is not None]
        return found

    def release(self, steps: int) -> None:
        """Let the cache that the memory is from know of so many steps."""
        for part in self.parts:
            start, part.held.length = part.held.length, part.held.length + steps
            if part.held.positions is not None and part.real_tokens is not None:
                for step in range(steps):
                    slot = part.held._slot(start + step)
                    part.held.positions[:, slot] = part.real_tokens[:, 0] - (steps - step)
