"""Values that the token itself brings, whatever its context."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.parameter_kinds import EMBEDDINGS, GATES, MATRICES
from modern_llm.models.parts.part import Carried, Sizes, ValuePart, Weight, in_layers

if TYPE_CHECKING:
    from torch import Tensor

_TABLE = Defaults("model/values/value_table", "value_table")
_PROJECTION = Defaults("model/values/value_projection", "value_projection")


@dataclass(frozen=True)
class ValueEmbedding(ValuePart):
    """v_l <- v_l + g_l e_l, e_l what the token brings, g_l = 2 sigmoid(G_l x[:channels]) a factor for each key/value
    head (modded-nanogpt, records 14 and 55). Subclasses say what e_l is.

    Args:
        layers: all, or alternate: every second one, the last among them.
        gate_channels: channels of the normed stream that the gate reads; null: no gate, g = 1.
    """

    name: ClassVar[str]  # of the part in `model.values`

    layers: Literal["all", "alternate"]
    gate_channels: int | None

    def check(self, sizes: Sizes) -> None:
        require(self.gate_channels is None or 1 <= self.gate_channels <= sizes.d_model,
                f"model.values.{self.name}.gate_channels", self.gate_channels,
                f"must lie between 1 and model.d_model={sizes.d_model}", "Use null for no gate")  # fmt: skip

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        if not in_layers(self.layers, layer, sizes.n_layers):
            return {}
        gate = {"gate": Weight((sizes.n_kv_heads, self.gate_channels), GATES)} if self.gate_channels else {}
        return {**self.brings(sizes), **gate}

    @abstractmethod
    def brings(self, sizes: Sizes) -> dict[str, Weight]:
        """The weight that e_l comes from."""

    @abstractmethod
    def brought(self, weights: Any, carried: Carried) -> Tensor:
        """e_l, (B, T, Hkv D)."""

    def mix(self, weights: Any, values: Tensor, x: Tensor, carried: Carried, layer: int) -> Tensor:
        if not weights.declared:
            return values
        brought = self.brought(weights, carried).view(values.shape).to(values.dtype)
        if self.gate_channels is None:
            return values + brought
        from torch.nn import functional as F

        gate = 2 * F.linear(x[..., : self.gate_channels], weights.gate).sigmoid()  # (B, T, Hkv)
        return values + gate[..., None].to(values.dtype) * brought


@dataclass(frozen=True)
class ValueTable(ValueEmbedding):
    """e_l = E_l[token]: a table of its own in every layer, which costs memory and no products."""

    name = "value_table"

    layers: Literal["all", "alternate"] = _TABLE("layers")
    gate_channels: int | None = _TABLE("gate_channels")

    def brings(self, sizes: Sizes) -> dict[str, Weight]:
        width = sizes.n_kv_heads * sizes.head_size
        return {"table": Weight((sizes.vocab_size, width), EMBEDDINGS, std=sizes.d_model**-0.5)}

    def brought(self, weights: Any, carried: Carried) -> Tensor:
        from torch.nn import functional as F

        return F.embedding(carried["input_ids"], weights.table)


@dataclass(frozen=True)
class ValueProjection(ValueEmbedding):
    """e_l = W_l x0, x0 the embedded tokens: what a table would hold, from d_model^2 weights (slowrun 2026), which suits
    little text."""

    name = "value_projection"

    layers: Literal["all", "alternate"] = _PROJECTION("layers")
    gate_channels: int | None = _PROJECTION("gate_channels")

    def brings(self, sizes: Sizes) -> dict[str, Weight]:
        width = sizes.n_kv_heads * sizes.head_size
        return {"projection": Weight((width, sizes.d_model), MATRICES, std=sizes.d_model**-0.5)}

    def brought(self, weights: Any, carried: Carried) -> Tensor:
        from modern_llm.models.linear import linear

        return linear(carried["embedded"], weights.projection)
