"""The decoder's hyper-parameters and the only home of its shape rules. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.attention.grouping import GQAConfig
from modern_llm.models.attention.layers import AttentionView, LayerPattern
from modern_llm.models.attention.rope import NoRope, PlainRope
from modern_llm.models.attention.sinks import LearnableSinks, Sinks
from modern_llm.models.counting import count_flops, count_parameters
from modern_llm.models.feed_forward.kinds import FeedForwardKind, SwiGLU
from modern_llm.models.feed_forward.mixture import MoEConfig
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.initialisation.scheme import InitScheme
from modern_llm.models.norm_kinds import NormKind, RMSNormKind
from modern_llm.models.parts.part import (
    AttentionPart,
    BlockPart,
    BranchPart,
    EmbeddingPart,
    HeadPart,
    MixingPart,
    Part,
    ProjectionPart,
    ResidualPart,
    Sizes,
    ValuePart,
)

if TYPE_CHECKING:
    from modern_llm.models.norm import Norm


def rows_for(configured: int | None, ids: int) -> int:
    """Rows of the embedding for a tokenizer: those that are configured, or as many as it has ids.

    Raises:
        ValueError: fewer are configured.
    """
    require(configured is None or configured >= ids, "model.vocab_size", configured,
            f"is smaller than the tokenizer's {ids} ids", "Use null to take the tokenizer's size")  # fmt: skip
    return ids if configured is None else configured


_DECODER = Defaults("model/decoder")


@dataclass(frozen=True)
class ModernLLMConfig:
    """Hyper-parameters of `ModernDecoderLM`.

    Args:
        vocab_size: rows of the embedding; null: the tokenizer's size, filled in before the model is built.
        max_seq_len: tokens of context that the model is trained for.
        d_model: width of the residual stream.
        n_layers: decoder blocks.
        n_heads: query heads.
        head_dim: width of one head; null: d_model / n_heads.
        ffn_hidden_size: hidden width of the feed-forward layer; null: what gives it the parameters of two matrices of
            width 4 d_model, with a gate 8/3 d_model rounded up to a multiple of 64.
        ffn: kind of the feed-forward layer and of each expert, one of `models/feed_forward/kinds.py`.
        rope: rotary variant, one of `models/attention/rope.py`.
        gqa: how query heads share key/value heads.
        sinks: the kind of attention sink that `use_attention_sinks` turns on, one of `models/attention/sinks.py`.
        use_attention_sinks: whether the sinks are there.
        block: what stands in the place of whole blocks; null: nothing does.
        attention: what stands in the place of softmax attention; null: nothing does.
        layers: how attention differs from layer to layer.
        moe: mixture-of-experts feed-forward; null is the dense layer.
        sliding_window: last tokens that a position attends to, itself included (Mistral); null: all.
        qk_norm: RMSNorm on each query and key head before rotation (Qwen3).
        qk_gain: whether these norms have a learned weight.
        qk_norm_per_head: false: one norm over all heads at once (OLMo 2, arXiv 2501.00656, section 3.2).
        attention_scale: times 1 / sqrt(head_dim) on the scores of attention.
        attention_softcap: c of the scores c tanh(s / c) (Gemma 2, arXiv 2408.00118, section 2), those of learned sinks
            included; null: s as it is. No fused kernel has it.
        qkv_bias: biases on the query, key and value projections (Qwen2).
        o_bias: a bias on the projection of what the heads give.
        ffn_bias: biases in the feed-forward layer and in each expert.
        tie_embeddings: the output head shares the embedding matrix.
        logit_softcap: c of the logits c tanh(z / c) (Gemma 2, arXiv 2408.00118, section 2); null: z as it is.
        logit_scale: on the logits, in front of the cap.
        embedding_scale: on the embedded tokens.
        branch_scale: on what each branch adds to the residual stream.
        norm: kind of the norms of the residual stream, one of `models/norm_kinds.py`.
        norm_place: where they stand: before a branch, behind it (OLMo 2, section 3.2), or both (Gemma 2, section 2).
        norm_eps: epsilon of every norm.
        dropout: probability on each residual branch, in training.
        embedding_dropout: on the embedded tokens; null: as `dropout`.
        attention_dropout: on the weights of attention.
        ffn_dropout: on the hidden layer of the feed-forward layer; not with experts.
        output_dropout: on what the head reads.
        embedding: parts between the embedding and the first block, in their order, of `models/embedding`.
        residual: parts of the residual stream, of `models/residual`.
        branches: parts that change what attention and the feed-forward layer read, of `models/branches`.
        projections: parts that change queries, keys and values, of `models/projections`.
        values: parts that change the values of attention, of `models/values`.
        heads: parts that change what each head gives, of `models/heads`.
        init: the initial weights, one of `models/initialisation`.

    Raises:
        ValueError: an impossible value or combination, with key, value, rule and remedy.
    """

    vocab_size: int | None = _DECODER("vocab_size")
    max_seq_len: int = _DECODER("max_seq_len")
    d_model: int = _DECODER("d_model")
    n_layers: int = _DECODER("n_layers")
    n_heads: int = _DECODER("n_heads")
    head_dim: int | None = _DECODER("head_dim")
    ffn_hidden_size: int | None = _DECODER("ffn_hidden_size")
    ffn: FeedForwardKind = field(default_factory=SwiGLU)
    rope: PlainRope | NoRope = field(default_factory=PlainRope)
    gqa: GQAConfig = field(default_factory=GQAConfig)
    sinks: Sinks = field(default_factory=LearnableSinks)
    use_attention_sinks: bool = _DECODER("use_attention_sinks")
    block: BlockPart | None = None
    attention: AttentionPart | None = None
    layers: LayerPattern = field(default_factory=LayerPattern)
    moe: MoEConfig | None = None
    sliding_window: int | None = _DECODER("sliding_window")
    qk_norm: bool = _DECODER("qk_norm")
    qk_gain: bool = _DECODER("qk_gain")
    qk_norm_per_head: bool = _DECODER("qk_norm_per_head")
    attention_scale: float = _DECODER("attention_scale")
    attention_softcap: float | None = _DECODER("attention_softcap")
    qkv_bias: bool = _DECODER("qkv_bias")
    o_bias: bool = _DECODER("o_bias")
    ffn_bias: bool = _DECODER("ffn_bias")
    tie_embeddings: bool = _DECODER("tie_embeddings")
    logit_softcap: float | None = _DECODER("logit_softcap")
    logit_scale: float = _DECODER("logit_scale")
    embedding_scale: float = _DECODER("embedding_scale")
    branch_scale: float = _DECODER("branch_scale")
    norm: NormKind = field(default_factory=RMSNormKind)
    norm_place: Literal["before", "behind", "both"] = _DECODER("norm_place")
    norm_eps: float = _DECODER("norm_eps")
    dropout: float = _DECODER("dropout")
    embedding_dropout: float | None = _DECODER("embedding_dropout")
    attention_dropout: float = _DECODER("attention_dropout")
    ffn_dropout: float = _DECODER("ffn_dropout")
    output_dropout: float = _DECODER("output_dropout")
    embedding: Mapping[str, EmbeddingPart] = field(default_factory=dict)
    residual: Mapping[str, ResidualPart] = field(default_factory=dict)
    branches: Mapping[str, BranchPart] = field(default_factory=dict)
    projections: Mapping[str, ProjectionPart] = field(default_factory=dict)
    values: Mapping[str, ValuePart] = field(default_factory=dict)
    heads: Mapping[str, HeadPart] = field(default_factory=dict)
    init: InitScheme = field(default_factory=GPT2Init)

    def __post_init__(self) -> None:
        for key in ("max_seq_len", "d_model", "n_layers", "n_heads"):
            require(getattr(self, key) >= 1, f"model.{key}", getattr(self, key), "must be at least 1", "Raise it")
        for key in ("vocab_size", "head_dim", "ffn_hidden_size", "sliding_window"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"model.{key}", value, "must be at least 1", "Raise it, or use null")
        require(
            self.head_dim is not None or self.d_model % self.n_heads == 0,
            "model.n_heads",
            self.n_heads,
            f"must divide model.d_model={self.d_model}",
            "Change one of them, or set model.head_dim",
        )
        if isinstance(self.rope, PlainRope):
            require(self.head_size % 2 == 0, "model.head_dim", self.head_size,
                    "must be even, because RoPE rotates pairs",
                    "Change d_model or n_heads, or use model/rope=none")  # fmt: skip
            require(self.head_size >= 4, "model.head_dim", self.head_size, "must be at least 4 for RoPE",
                    "Use fewer heads, or model/rope=none")  # fmt: skip
            turned = self.rope.turned(self.head_size)
            require(turned % 2 == 0 and turned >= 4, "model.rope.fraction", self.rope.fraction,
                    f"turns {turned} of {self.head_size} channels, which must be pairs, and two at least",
                    "Use 0.5 or 1.0, or change model.head_dim")  # fmt: skip
        require(
            self.n_heads % self.gqa.group_size == 0,
            "model.gqa.group_size",
            self.gqa.group_size,
            f"must divide model.n_heads={self.n_heads}",
            f"Choose among {[g for g in range(1, self.n_heads + 1) if self.n_heads % g == 0]}",
        )
        for key in ("dropout", "embedding_dropout", "attention_dropout", "ffn_dropout", "output_dropout"):
            value = getattr(self, key)
            require(value is None or 0 <= value < 1, f"model.{key}", value, "must lie in [0, 1)", "Use 0 for none")
        require(self.ffn_dropout == 0 or self.moe is None, "model.ffn_dropout", self.ffn_dropout,
                "cannot be used with experts", "Use 0, or model/moe=dense")  # fmt: skip
        require(self.norm_eps > 0, "model.norm_eps", self.norm_eps, "must be above 0", "Use 1e-5")
        for key, usual in (("logit_softcap", 15), ("attention_softcap", 50)):
            value = getattr(self, key)
            require(value is None or value > 0, f"model.{key}", value, "must be above 0",
                    f"Use {usual}, or null for none")  # fmt: skip
        require(self.attention_scale > 0, "model.attention_scale", self.attention_scale, "must be above 0",
                "Use 1.0 for 1 / sqrt(head_dim)")  # fmt: skip
        for key in ("logit_scale", "embedding_scale", "branch_scale"):
            require(getattr(self, key) > 0, f"model.{key}", getattr(self, key), "must be above 0", "Use 1.0 for none")
        places = ("before", "behind", "both")
        require(self.norm_place in places, "model.norm_place", self.norm_place, "is unknown",
                f"Choose among {', '.join(places)}")  # fmt: skip
        self.layers.check(self.n_layers)
        for part, _ in self.placed_parts:
            part.check(self.sizes)
        if self.use_attention_sinks:
            num_sinks = self.sinks.learned_rows + self.sinks.kept_tokens
            room = self.sinks.window if self.sinks.window is not None else self.max_seq_len
            require(
                num_sinks < room,
                "model.sinks.num_sinks",
                num_sinks,
                f"must be below the window of {room} tokens",
                "Use fewer sinks, or raise model.sinks.window or model.max_seq_len",
            )
            require(
                self.sliding_window is None,
                "model.sliding_window",
                self.sliding_window,
                "cannot be combined with attention sinks, which bring their own window",
                "Set model.sinks.window instead and model.sliding_window=null",
            )

    @property
    def placed_parts(self) -> list[tuple[Part, Sequence[int]]]:
        """All that declare their own weights, and the blocks that each stands in."""
        every = range(self.n_layers)
        plain = [i for i in every if self.is_plain(i)]
        softmax = [i for i in plain if self.has_softmax(i)]
        groups: list[tuple[Mapping[str, Part], Sequence[int]]] = [
            (self.embedding, every),
            (self.residual, every),
            (self.branches, plain),
            (self.projections, softmax),
            (self.values, softmax),
            (self.heads, softmax),
        ]
        found = [(part, layers) for group, layers in groups for part in group.values()]
        for part in (self.attention, self.block):
            if part is not None:
                found.append((part, [i for i in every if self.mixing_part(i) is part]))
        return found

    def is_plain(self, layer: int) -> bool:
        """Whether a block is ours, and not what stands in its place."""
        return self.block is None or not self.block.stands_in(layer, self.n_layers)

    def mixing_part(self, layer: int) -> MixingPart | None:
        """What stands in the place of a block or of its softmax attention; None: nothing does."""
        if not self.is_plain(layer):
            return self.block
        if self.attention is not None and self.attention.stands_in(layer, self.n_layers):
            return self.attention
        return None

    def has_softmax(self, layer: int) -> bool:
        """Whether a block has our softmax attention."""
        return self.mixing_part(layer) is None

    @property
    def softmax_layers(self) -> int:
        """Blocks that have it."""
        return sum(map(self.has_softmax, range(self.n_layers)))

    @property
    def plain_layers(self) -> int:
        """Blocks that are ours."""
        return sum(map(self.is_plain, range(self.n_layers)))

    @property
    def sizes(self) -> Sizes:
        """What parts know of the model."""
        return Sizes(
            self.d_model,
            self.n_layers,
            self.n_heads,
            self.n_kv_heads,
            self.head_size,
            self.vocab_size or 0,
            self.max_seq_len,
        )

    @property
    def other_rope(self) -> PlainRope | None:
        """The rotary variant of the layers that have another base; None: there are none."""
        if self.layers.other_theta is None or isinstance(self.rope, NoRope):
            return None
        return PlainRope(self.layers.other_theta, fraction=self.rope.fraction)

    def built_norm(self) -> Norm:
        """A norm of the residual stream."""
        return self.norm.build(self.d_model, self.norm_eps)

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.head_dim if self.head_dim is not None else self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Key/value heads."""
        return self.n_heads // self.gqa.group_size

    @property
    def ffn_size(self) -> int:
        """Hidden width of the dense layer."""
        if self.ffn_hidden_size is not None:
            return self.ffn_hidden_size
        return self.ffn.default_size(self.d_model)

    @property
    def expert_size(self) -> int:
        """Hidden width of one expert."""
        return self.moe.expert_hidden_size if self.moe and self.moe.expert_hidden_size else self.ffn_size

    @property
    def active_sinks(self) -> Sinks | None:
        """The sinks in use, or None."""
        return self.sinks if self.use_attention_sinks else None

    @property
    def attention_window(self) -> int | None:
        """Last tokens that a position attends to in the layers that see most, itself included; None: all of them."""
        windows = [view.window for view in self.views if view.keeps_keys]
        return None if None in windows else max((window for window in windows if window is not None), default=None)

    @property
    def kept_tokens(self) -> int:
        """First tokens of a text that stay visible behind the window."""
        return self.sinks.kept_tokens if self.use_attention_sinks else 0

    @property
    def views(self) -> list[AttentionView]:
        """What each layer sees."""
        rotary = not isinstance(self.rope, NoRope)
        whole = bare = AttentionView(self.sliding_window, rotary=rotary)  # bare: sinks are softmax attention's own
        if self.use_attention_sinks:
            sinks = self.sinks
            window = sinks.window if sinks.window is not None else self.max_seq_len - sinks.kept_tokens
            whole = AttentionView(window, sinks.kept_tokens, sinks.learned_rows, sinks.rotated, rotary)
        views = []
        for layer in range(self.n_layers):
            part = self.mixing_part(layer)
            if part is None:
                views.append(self.layers.of(layer, whole, self.max_seq_len))
            elif part.keeps_keys:
                views.append(self.layers.of(layer, bare, self.max_seq_len))
            else:
                views.append(bare._replace(window=None, keeps_keys=False))
        return views

    def with_vocab_size(self, vocab_size: int) -> ModernLLMConfig:
        """This configuration for a tokenizer of `vocab_size` ids.

        Raises:
            ValueError: `vocab_size` is set already and smaller than the tokenizer's.
        """
        return replace(self, vocab_size=rows_for(self.vocab_size, vocab_size))

    def parameters(self, active_only: bool = False) -> Counter[str]:
        """Learned numbers by kind (`parameter_kinds.KINDS`), embeddings included; `active_only` counts `top_k` experts
        per layer instead of all. Exact: a test compares it with the built model."""
        return count_parameters(self, active_only)

    @property
    def outside_blocks(self) -> int:
        """Learned numbers of the embedding and the head."""
        return (self.vocab_size or 0) * self.d_model * (1 if self.tie_embeddings else 2)

    def parameter_count(self, active_only: bool = False) -> int:
        """The sum of `parameters`."""
        return self.parameters(active_only).total()

    def flops_per_token(self, seq_len: int) -> float:
        """Floating-point operations of training on one token, forward and backward: 6 N + 12 H D T summed over the
        layers (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), with N the active parameters that multiply (the
        output head counted once, look-ups not) and T the tokens attended to."""
        return count_flops(self, seq_len)
