"""Parts as settings. A part says its weights and what is done with them, and asks for no other part: it is a class here
in a file of its own and a file in `conf/model/<group>/`. torch is imported where it computes.

The weights that a part declares are all that the counts, the memory plan, the initial values and the optimisers know
of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from modern_llm.models.attention.decoder_cache import DecoderCache
    from modern_llm.models.attention.plan import AttentionPlan
    from modern_llm.models.embedding.predecessors import Predecessors

# What blocks hand on besides the residual stream, by name. `input_ids` (B, T), `embedded` (B, T, d_model) and `before`,
# the predecessors of the tokens, are there from the beginning; parts add tensors of their own.
Carried = dict[str, Any]


class Sizes(NamedTuple):
    """What a part knows of the model that it stands in."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_size: int
    vocab_size: int
    max_seq_len: int

    @property
    def projected(self) -> int:
        """Width of queries, keys and values side by side."""
        return (self.n_heads + 2 * self.n_kv_heads) * self.head_size


class Weight(NamedTuple):
    """A learned tensor, drawn from Normal(mean, std) at first."""

    shape: tuple[int, ...]
    kind: str  # one of `parameter_kinds.KINDS`
    mean: float = 0.0
    std: float = 0.0


class Part:
    """What all parts share."""

    def weights(self, sizes: Sizes, layer: int) -> dict[str, Weight]:
        """Weights of the part in block `layer`, by name."""
        return {}

    def model_weights(self, sizes: Sizes) -> dict[str, Weight]:
        """Weights that the part has once in a model, by name."""
        return {}

    def check(self, sizes: Sizes) -> None:
        """Refuse a model that the part cannot stand in.

        Raises:
            ValueError: with key, value and remedy.
        """

    def stands_in(self, layer: int, n_layers: int) -> bool:
        """Whether block `layer` has the part at all."""
        return True

    def counts(self, sizes: Sizes, layers: Sequence[int]) -> Counter[str]:
        """Learned numbers of a whole model with the part in `layers`, by kind."""
        found: Counter[str] = Counter()
        for weights in (self.model_weights(sizes), *(self.weights(sizes, i) for i in layers)):
            for weight in weights.values():
                found[weight.kind] += prod(weight.shape)
        return found


@dataclass(frozen=True)
class EmbeddingPart(Part, ABC):
    """A part between the embedding and the first block."""

    @abstractmethod
    def apply(self, weights: Any, x: Tensor, before: Predecessors) -> Tensor:
        """x (B, T, d_model) changed; `before` gives what stood one token earlier; `weights` has those of
        `model_weights` as attributes."""


@dataclass(frozen=True)
class ResidualPart(Part):
    """A part of the residual stream. `weights` has the tensors of `weights` as attributes, in `end` those of
    `model_weights`."""

    def enter(self, weights: Any, x: Tensor, carried: Carried, layer: int, n_layers: int) -> Tensor:
        """The stream x (B, T, d_model) as it enters a block."""
        return x

    def leave(self, weights: Any, x: Tensor, carried: Carried, layer: int, n_layers: int) -> None:
        """The stream x as it leaves a block, to be kept in `carried`."""

    def end(self, weights: Any, x: Tensor, carried: Carried) -> Tensor:
        """The stream behind the last block, in front of the last norm."""
        return x


Branch = Literal["attention", "ffn"]


@dataclass(frozen=True)
class BranchPart(Part, ABC):
    """A part that changes what the two branches of a block read."""

    @abstractmethod
    def read(self, weights: Any, normed: Tensor, carried: Carried, branch: Branch, layer: int) -> Tensor:
        """The normed stream (B, T, d_model) changed, in front of a branch."""


@dataclass(frozen=True)
class ProjectionPart(Part, ABC):
    """A part that changes queries, keys and values, in front of norms, rotation and cache."""

    @abstractmethod
    def change(self, weights: Any, projected: Tensor, carried: Carried, layer: int) -> Tensor:
        """projected (B, T, (H + 2 Hkv) D) changed: queries, keys and values side by side."""


@dataclass(frozen=True)
class ValuePart(Part, ABC):
    """A part that changes the values of attention, in front of the cache."""

    @abstractmethod
    def mix(self, weights: Any, values: Tensor, x: Tensor, carried: Carried, layer: int) -> Tensor:
        """values (B, T, Hkv, D) changed; x (B, T, d_model) is what they were projected from."""


@dataclass(frozen=True)
class HeadPart(Part, ABC):
    """A part that changes what the heads of attention give."""

    @abstractmethod
    def apply(self, weights: Any, attended: Tensor, x: Tensor) -> Tensor:
        """attended (B, T, H, D) changed; x (B, T, d_model) is what queries were projected from."""


@dataclass(frozen=True)
class MixingPart(Part, ABC):
    """A map along the text, in the blocks that `stands_in` tells. It brings all of its weights.

    Attributes:
        keeps_keys: whether it looks at keys and values of the tokens before, by `State.extend`. `plan` then tells of
            them as well, and windows and positions are those of `model/layers`; else the plan is of the new tokens,
            and a cache holds no keys for it.
    """

    keeps_keys: ClassVar[bool] = False

    @abstractmethod
    def mix(
        self, weights: Any, sizes: Sizes, x: Tensor, plan: AttentionPlan, carried: Carried, state: State | None
    ) -> Tensor:
        """What it makes of x, (B, T, d_model).

        Args:
            weights: of `Part.weights`.
            sizes: of the model.
            x: (B, T, d_model).
            plan: who sees whom: `plan.causal`, or `plan.visible` where documents, padding or branches bound it, which
                is `plan.mask` for adding to scores; `plan.real` (B, T) where texts are padded; `plan.rotation`, to be
                used with `rotary.rotate`.
            carried: what the blocks hand on.
            state: what was left of the tokens before; None: these are all. Whatever it needs for the next tokens it
                leaves there.
        """

    def flops_per_token(self, sizes: Sizes, seq_len: int) -> float:
        """Operations of training on one token in one block, besides those with its matrices."""
        return 0.0


@dataclass(frozen=True)
class AttentionPart(MixingPart, ABC):
    """What stands in the place of softmax attention: x is the normed stream, and what it gives is added to the stream.
    Sinks and the parts of queries, keys, values and heads are softmax attention's own."""


@dataclass(frozen=True)
class BlockPart(MixingPart, ABC):
    """What stands in the place of a whole block: x is the stream in front of it, and what it gives is the stream behind
    it. Norms, dropout, attention, the feed-forward layer, experts and their parts are the plain block's own; the parts
    of the residual stream act around either."""


class State:
    """What one block remembers of B texts.

    Args:
        cache: of the model, which keeps and repeats rows.
        layer: the block.
    """

    def __init__(self, cache: DecoderCache, layer: int) -> None:
        self.cache, self.layer = cache, layer

    def get(self, name: str) -> Tensor | None:
        """(B, ...), or None before the first tokens."""
        return self.cache.last.get((self.layer, name))

    def put(self, name: str, value: Tensor) -> None:
        """value: (B, ...)."""
        self.cache.last[self.layer, name] = value

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Rotated keys and values (B, T, Hkv, D) of the new tokens behind those that are held: (B, n, Hkv, D) each, in
        the order of `plan.visible`. For a part with `keeps_keys`, once in a pass."""
        return self.cache.extend(self.layer, keys, values, None)


def first_to_last(first: float, last: float, layer: int, n_layers: int) -> float:
    """A straight line over the layers."""
    return first + (last - first) * layer / max(n_layers - 1, 1)


def in_layers(layers: str, layer: int, n_layers: int) -> bool:
    """Whether a part stands in a layer: `all`, or `alternate`, which are every second one, the last among them."""
    return layers == "all" or (n_layers - 1 - layer) % 2 == 0
