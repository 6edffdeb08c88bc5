"""Rotation of queries and keys by the frequencies that `rope.py` gives (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modern_llm.models.attention.layers import AttentionView
from modern_llm.models.attention.rope import NoRope, PlainRope
from modern_llm.models.config import ModernLLMConfig


class Rotation(NamedTuple):
    """cos and sin of every angle, (1 or B, T, 1, D/2), fp32, the variant's attention factor included."""

    cos: Tensor
    sin: Tensor


class _Rotate(torch.autograd.Function):
    """Both directions write the result in place, in four passes; composed of operations, they take three times as
    many, because torch pads the gradient of a half with zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(grad_outputs[0], cos, sin, -1), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    """x (B, T, H, D) rotated by the angle, or with direction -1 against it."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-direction)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=direction)
    return out


def rotate(x: Tensor, rotation: Rotation | None) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of every head, the split-half layout of the Llama family.

    Args:
        x: (B, T, H, D).
        rotation: angles for the T positions; None leaves x as it is (NoPE).
    """
    if rotation is None:
        return x
    cos, sin = rotation.cos.to(x.dtype), rotation.sin.to(x.dtype)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Rotate.apply(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Rotary(nn.Module):
    """Tables of angles, computed in float64 because a 32-bit angle loses whole turns at long distances.

    Args:
        rope: the variant.
        head_dim: width of one head.
        max_seq_len: positions in the table to begin with; it grows when a longer text comes.
        other: the variant of the layers that have one of their own; None: there are none.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, rope: PlainRope | NoRope, head_dim: int, max_seq_len: int, other: PlainRope | None = None
    ) -> None:
        super().__init__()
        self.other = None if other is None else Rotary(other, head_dim, max_seq_len)
        self.enabled = not isinstance(rope, NoRope)
        self.attention_factor = rope.attention_factor
        self.frequencies = rope.frequencies(head_dim)
        cos, sin = self._angles(0, max_seq_len if self.enabled else 0)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def restore(self) -> None:
        """Compute the tables anew, where they were made without content."""
        self.cos, self.sin = self._angles(0, len(self.cos), self.cos.device)

    @classmethod
    def of_model(cls, config: ModernLLMConfig) -> Rotary:
        """That of a decoder."""
        return cls(config.rope, config.head_size, config.max_seq_len, config.other_rope)

    def of(self, view: AttentionView) -> Rotary | NoRotation:
        """What turns in the layers that see `view`."""
        if not view.rotary:
            return NoRotation(self.cos)
        return self.other if view.other_rope and self.other is not None else self

    def _angles(self, start: int, stop: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        # A table may outlive the inference mode that it was first needed in, and training must be able to use it.
        with torch.inference_mode(False):
            positions = torch.arange(start, stop, dtype=torch.float64, device="cpu")
            frequencies = torch.tensor(self.frequencies, dtype=torch.float64, device="cpu")
            angles = torch.outer(positions, frequencies)
            cos, sin = ((f(angles) * self.attention_factor).float() for f in (torch.cos, torch.sin))
            return cos.to(device), sin.to(device)

    def span(self, start: int, stop: int) -> Rotation | None:
        """Rotation for the positions start..stop-1, the same in every row: (1, T, 1, D/2)."""
        if not self.enabled:
            return None
        if stop <= len(self.cos):
            cos, sin = self.cos[start:stop], self.sin[start:stop]
        else:
            # An unbounded stream never stores its angles: memory must stay flat.
            cos, sin = self._angles(start, stop, self.cos.device)
        return Rotation(cos[None, :, None], sin[None, :, None])

    def at(self, positions: Tensor, longest: int) -> Rotation | None:
        """Rotation for per-row positions.

        Args:
            positions: (B, T) integers below `longest`.
            longest: a bound known on the host, so that no device value is read.
        """
        if not self.enabled:
            return None
        if longest > len(self.cos):
            self.cos, self.sin = self._angles(0, longest, self.cos.device)
        return Rotation(self.cos[positions][:, :, None], self.sin[positions][:, :, None])

    def without_factor(self, rotation: Rotation | None) -> Rotation | None:
        """The rotation alone, without the attention factor: what moves a key that is rotated already."""
        if rotation is None:
            return None
        return Rotation(rotation.cos / self.attention_factor, rotation.sin / self.attention_factor)


class NoRotation(NamedTuple):
    """What layers without positions have in place of `Rotary`; it turns nothing."""

    cos: Tensor  # of the model, for its device

    def span(self, start: int, stop: int) -> None:
        """No rotation."""

    def at(self, positions: Tensor, longest: int) -> None:
        """No rotation."""

    def without_factor(self, rotation: Rotation | None) -> None:
        """No rotation."""
