"""Rotary position embedding (RoPE, Su et al. 2021, arXiv 2104.09864): the choices of `model/rope`.

Each class gives the rotation frequencies of one variant as plain floats; `rotary.py` turns them into tables
and rotates. A new variant is one class here and one file in `conf/model/rope/`. This module imports no torch:
it is loaded while a configuration is checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from modern_llm.checks import require
from modern_llm.defaults import Defaults


def _base_frequencies(theta: float, head_dim: int) -> list[float]:
    """theta^(-2i/D) for i in [0, D/2): radians per token of each rotated pair (Su et al. 2021, eq. 15)."""
    return [theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]


_PLAIN_ROPE = Defaults("model/rope/plain")


@dataclass(frozen=True)
class PlainRope:
    """RoPE as published, of all pairs or of a share of them (GPT-J; modded-nanogpt, record 20).

    Args:
        theta: base of the geometric frequencies.
        fraction: share of the pairs that turn, the first ones; the others carry no position. It is as if the head were
            that much narrower: the frequencies run over the pairs that turn.
    """

    theta: float = _PLAIN_ROPE("theta")
    fraction: float = field(default=_PLAIN_ROPE("fraction"), kw_only=True)

    def __post_init__(self) -> None:
        require(
            self.theta > 1, "model.rope.theta", self.theta, "must be above 1", "Use 10000, or 500000 for long contexts"
        )
        require(0 < self.fraction <= 1, "model.rope.fraction", self.fraction, "must lie in (0, 1]",
                "Use 1.0 for all pairs, or model/rope=none for none")  # fmt: skip

    def turned(self, head_dim: int) -> int:
        """Channels of a head that turn."""
        return int(head_dim * self.fraction)

    @property
    def attention_factor(self) -> float:
        """Factor on both rotated queries and rotated keys; 1 except in YaRN."""
        return 1.0

    def frequencies(self, head_dim: int) -> list[float]:
        """Radians per token of each of the `head_dim / 2` pairs."""
        turning = self.turning(self.turned(head_dim))
        return turning + [0.0] * (head_dim // 2 - len(turning))

    def turning(self, width: int) -> list[float]:
        """Radians per token of the pairs of the `width` channels that turn."""
        return _base_frequencies(self.theta, width)


_SCALED = Defaults("model/rope/linear")


@dataclass(frozen=True)
class ScaledRope(PlainRope):
    """What the context-extending variants share.

    Args:
        factor: how many times the context is to grow.
    """

    factor: float = _SCALED("factor")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.factor >= 1,
            "model.rope.factor",
            self.factor,
            "must be at least 1",
            "Use model/rope=plain for no scaling",
        )


@dataclass(frozen=True)
class LinearRope(ScaledRope):
    """Position interpolation: positions are divided by `factor` (Chen et al. 2023, arXiv 2306.15595)."""

    def turning(self, width: int) -> list[float]:
        return [f / self.factor for f in super().turning(width)]


@dataclass(frozen=True)
class NTKRope(ScaledRope):
    """NTK-aware scaling: theta' = theta * factor^(D / (D - 2)), so that the slowest pair is interpolated by
    `factor` and the fastest is left alone (Peng et al. 2023, arXiv 2309.00071, section 3.1)."""

    def scaled_theta(self, width: int) -> float:
        return self.theta * self.factor ** (width / (width - 2))

    def turning(self, width: int) -> list[float]:
        return _base_frequencies(self.scaled_theta(width), width)


_YARN_ROPE = Defaults("model/rope/yarn")


@dataclass(frozen=True)
class YarnRope(ScaledRope):
    """YaRN (Peng et al. 2023, arXiv 2309.00071): fast pairs extrapolate, slow pairs interpolate, a linear ramp
    between (eq. 18 to 20); the attention temperature is folded into the rotation (eq. 22).

    Args:
        original_max_seq_len: context length, in tokens, of the model before extension.
        beta_fast: pairs that turn more often than this over the original context are left alone.
        beta_slow: pairs that turn less often than this are fully interpolated.
        attention_scale: factor on rotated queries and keys; null is the paper's 0.1 ln(factor) + 1.
        truncate: round the ramp's ends to whole pairs, as the published code does.
    """

    original_max_seq_len: int = _YARN_ROPE("original_max_seq_len")
    beta_fast: float = _YARN_ROPE("beta_fast")
    beta_slow: float = _YARN_ROPE("beta_slow")
    attention_scale: float | None = _YARN_ROPE("attention_scale")
    truncate: bool = _YARN_ROPE("truncate")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.beta_fast > self.beta_slow > 0,
            "model.rope.beta_fast",
            self.beta_fast,
            f"must be above model.rope.beta_slow={self.beta_slow}, and both above 0",
            "The paper uses 32 and 1",
        )
        require(
            self.original_max_seq_len > 0,
            "model.rope.original_max_seq_len",
            self.original_max_seq_len,
            "must be above 0",
            "Give the context length of the model before extension",
        )
        require(self.fraction == 1 or self.attention_factor == 1, "model.rope.fraction", self.fraction,
                f"cannot be combined with the factor {self.attention_factor:g} on all that is rotated",
                "Use 1.0, or model.rope.attention_scale=1")  # fmt: skip

    @property
    def attention_factor(self) -> float:
        if self.attention_scale is not None:
            return self.attention_scale
        return 0.1 * math.log(self.factor) + 1.0

    def turning(self, width: int) -> list[float]:
        def pair_that_turns(times: float) -> float:
            wavelength = self.original_max_seq_len / (times * 2 * math.pi)
            return width * math.log(wavelength) / (2 * math.log(self.theta))

        low, high = pair_that_turns(self.beta_fast), pair_that_turns(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        ramp = max(high - low, 0.001)
        mixed = []
        for i, frequency in enumerate(super().turning(width)):
            interpolated = min(max((i - low) / ramp, 0.0), 1.0)
            mixed.append(frequency * (1 - interpolated) + frequency / self.factor * interpolated)
        return mixed


_LLAMA3ROPE = Defaults("model/rope/llama3")


@dataclass(frozen=True)
class Llama3Rope(ScaledRope):
    """The scaling of Llama 3.1 and later (Grattafiori et al. 2024, arXiv 2407.21783): wavelengths longer than
    the original context are divided by `factor`, short ones kept, a smooth step between.

    Args:
        original_max_seq_len: context length, in tokens, before extension.
        low_freq_factor: wavelengths above original_max_seq_len / low_freq_factor are fully interpolated.
        high_freq_factor: wavelengths below original_max_seq_len / high_freq_factor are left alone.
    """

    original_max_seq_len: int = _LLAMA3ROPE("original_max_seq_len")
    low_freq_factor: float = _LLAMA3ROPE("low_freq_factor")
    high_freq_factor: float = _LLAMA3ROPE("high_freq_factor")

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.high_freq_factor > self.low_freq_factor > 0,
            "model.rope.high_freq_factor",
            self.high_freq_factor,
            f"must be above model.rope.low_freq_factor={self.low_freq_factor}, and both above 0",
            "Llama 3.1 uses 4 and 1",
        )

    def turning(self, width: int) -> list[float]:
        scaled = []
        for frequency in super().turning(width):
            turns = self.original_max_seq_len * frequency / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = min(max(kept, 0.0), 1.0)
            scaled.append(kept * frequency + (1 - kept) * frequency / self.factor)
        return scaled


@dataclass(frozen=True)
class NoRope:
    """No positional encoding (NoPE, Kazemnejad et al. 2023, arXiv 2305.19466): order comes from the causal mask."""

    @property
    def attention_factor(self) -> float:
        return 1.0

    def frequencies(self, head_dim: int) -> list[float]:
        return []


Rope = PlainRope | NoRope
