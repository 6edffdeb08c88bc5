"""How attention differs from layer to layer: the choices of `model/layers`, and what one layer sees. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from modern_llm.checks import require
from modern_llm.defaults import Defaults


class AttentionView(NamedTuple):
    """What the positions of one layer see, and whether they are told apart."""

    window: int | None  # last tokens, itself included; None: all
    kept_tokens: int = 0  # first tokens that stay visible behind the window
    learned_rows: int = 0  # learned sinks that all see
    sinks_rotated: bool = False  # whether sinks are seen at a rotary distance
    rotary: bool = True  # False: no positions (NoPE)
    keeps_keys: bool = True  # False: no softmax attention, and nothing of keys and values behind a pass
    other_rope: bool = False  # rotates by the other base

    def reach(self, longest: int) -> int:
        """Tokens of a text of `longest` tokens that one token can see."""
        return longest if self.window is None else self.window + self.kept_tokens

    def sinks_move(self, longest: int) -> bool:
        """Whether a text of `longest` tokens is so long that its distance to the sinks is counted inside the window."""
        return self.rotary and self.sinks_rotated and longest > self.reach(longest)


_DEFAULTS = Defaults("model/layers/uniform")


@dataclass(frozen=True)
class LayerPattern:
    """Windows and positions by layer, as letters that are repeated over the layers.

    Args:
        windows: L sees what the model's own window or sinks leave, S at most `short_window` tokens (Beltagy et al.
            2020, arXiv 2004.05150; Gemma 2, arXiv 2408.00118, section 2). SSSL is three short ones and a long one.
        short_window: last tokens that S sees, itself included, beside sinks; null: a quarter of `max_seq_len`.
        rotary: R rotates by position, N does not (NoPE in some layers, Yang et al. 2025, arXiv 2501.18795; SmolLM3), B
            rotates by another base (Gemma 3, arXiv 2503.19786, section 2).
        other_theta: that base; null where no layer has it.
    """

    windows: str = _DEFAULTS("windows")
    short_window: int | None = _DEFAULTS("short_window")
    rotary: str = _DEFAULTS("rotary")
    other_theta: float | None = _DEFAULTS("other_theta")

    def __post_init__(self) -> None:
        for key, letters in (("windows", "LS"), ("rotary", "RNB")):
            value = getattr(self, key)
            told = f"must be made of the letters {', '.join(letters)}"
            require(value != "" and set(value) <= set(letters), f"model.layers.{key}", value, told,
                    f"Use {letters[0]} for all layers")  # fmt: skip
        require(self.short_window is None or self.short_window >= 1, "model.layers.short_window", self.short_window,
                "must be at least 1", "Raise it, or use null")  # fmt: skip
        require((self.other_theta is not None) == ("B" in self.rotary), "model.layers.other_theta", self.other_theta,
                f"must be given where model.layers.rotary={self.rotary} has a B, and nowhere else",
                "Use 10000, or null without a B")  # fmt: skip
        require(self.other_theta is None or self.other_theta > 1, "model.layers.other_theta", self.other_theta,
                "must be above 1", "Use 10000")  # fmt: skip

    def check(self, n_layers: int) -> None:
        """Refuse a pattern that does not show in a model.

        Raises:
            ValueError: it is longer than the layers.
        """
        for key in ("windows", "rotary"):
            value = getattr(self, key)
            require(len(value) <= n_layers, f"model.layers.{key}", value,
                    f"is longer than model.n_layers={n_layers}", "Shorten it or raise model.n_layers")  # fmt: skip

    def of(self, layer: int, whole: AttentionView, max_seq_len: int) -> AttentionView:
        """What a layer sees where the model as a whole sees `whole`."""
        window = whole.window
        if self.windows[layer % len(self.windows)] == "S":
            short = self.short_window or max(max_seq_len // 4, 1)
            window = short if window is None else min(window, short)
        letter = self.rotary[layer % len(self.rotary)]
        rotary = whole.rotary and letter != "N"
        return whole._replace(window=window, rotary=rotary, other_rope=rotary and letter == "B")
