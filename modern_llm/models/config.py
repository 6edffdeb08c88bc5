"""The decoder's hyper-parameters and the only home of its shape rules. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from modern_llm.checks import require
from modern_llm.defaults import Defaults
from modern_llm.models.attention.layers import AttentionView, LayerPattern
from modern_llm.models.attention.rope import NoRope, PlainRope
from modern_llm.models.attention.sinks import LearnableSinks, Sinks
from modern_llm.models.feed_forward.kinds import FeedForwardKind, SwiGLU
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.models.initialisation.scheme import InitScheme
from modern_llm.models.parameter_kinds import EMBEDDINGS, HEADS, MATRICES, VECTORS
from modern_llm.models.parts.part import (
    AttentionPart,
    BranchPart,
    EmbeddingPart,
    HeadPart,
    Part,
    ProjectionPart,
    ResidualPart,
    Sizes,
    ValuePart,
    total_counts,
)

_GQA = Defaults("model/gqa/mha")


@dataclass(frozen=True)
class GQAConfig:
    """Grouped-query attention (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        group_size: query heads that share one key/value head; 1 is multi-head attention, `n_heads` is
            multi-query attention (Shazeer 2019, arXiv 1911.02150).
    """

    group_size: int = _GQA("group_size")

    def __post_init__(self) -> None:
        require(
            self.group_size >= 1, "model.gqa.group_size", self.group_size, "must be at least 1", "Use model/gqa=mha"
        )


_MOE = Defaults("model/moe/top2of8")


@dataclass(frozen=True)
class MoEConfig:
    """Mixture of experts in place of the feed-forward layer (Shazeer et al. 2017, arXiv 1701.06538; Fedus
    et al. 2021, arXiv 2101.03961; Jiang et al. 2024, arXiv 2401.04088).

    Args:
        n_experts: experts per layer.
        top_k: experts that each token passes through.
        expert_hidden_size: hidden width of one expert; null: the model's `ffn_hidden_size`.
        balance_loss_weight: weight of the load-balance loss (Fedus et al. 2021, eq. 4).
        z_loss_weight: weight of the router z-loss (Zoph et al. 2022, arXiv 2202.08906, eq. 5).
    """

    n_experts: int = _MOE("n_experts")
    top_k: int = _MOE("top_k")
    expert_hidden_size: int | None = _MOE("expert_hidden_size")
    balance_loss_weight: float = _MOE("balance_loss_weight")
    z_loss_weight: float = _MOE("z_loss_weight")

    def __post_init__(self) -> None:
        require(
            self.n_experts >= 2,
            "model.moe.n_experts",
            self.n_experts,
            "must be at least 2",
            "Use model/moe=dense for one",
        )
        require(
            1 <= self.top_k <= self.n_experts,
            "model.moe.top_k",
            self.top_k,
            f"must lie between 1 and model.moe.n_experts={self.n_experts}",
            "Lower model.moe.top_k or raise model.moe.n_experts",
        )
        require(
            self.expert_hidden_size is None or self.expert_hidden_size >= 1,
            "model.moe.expert_hidden_size",
            self.expert_hidden_size,
            "must be at least 1",
            "Give a width, or null for the model's ffn_hidden_size",
        )
        for key in ("balance_loss_weight", "z_loss_weight"):
            require(
                getattr(self, key) >= 0,
                f"model.moe.{key}",
                getattr(self, key),
                "must not be negative",
                "Use 0 for none",
            )


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
        attention: what stands in the place of softmax attention; null: nothing does.
        layers: how attention differs from layer to layer.
        moe: mixture-of-experts feed-forward; null is the dense layer.
        sliding_window: last tokens that a position attends to, itself included (Mistral); null: all.
        qk_norm: RMSNorm on each query and key head before rotation (Qwen3).
        qk_gain: whether these norms have a learned weight.
        attention_scale: times 1 / sqrt(head_dim) on the scores of attention.
        qkv_bias: biases on the query, key and value projections (Qwen2).
        tie_embeddings: the output head shares the embedding matrix.
        logit_softcap: c of the logits c tanh(z / c) (Gemma 2, arXiv 2408.00118, section 2); null: z as it is.
        norm_eps: epsilon of every RMSNorm.
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
    attention: AttentionPart | None = None
    layers: LayerPattern = field(default_factory=LayerPattern)
    moe: MoEConfig | None = None
    sliding_window: int | None = _DECODER("sliding_window")
    qk_norm: bool = _DECODER("qk_norm")
    qk_gain: bool = _DECODER("qk_gain")
    attention_scale: float = _DECODER("attention_scale")
    qkv_bias: bool = _DECODER("qkv_bias")
    tie_embeddings: bool = _DECODER("tie_embeddings")
    logit_softcap: float | None = _DECODER("logit_softcap")
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
        require(
            isinstance(self.rope, NoRope) or self.head_size % 2 == 0,
            "model.head_dim",
            self.head_size,
            "must be even, because RoPE rotates pairs",
            "Change d_model or n_heads, or use model/rope=none",
        )
        require(
            isinstance(self.rope, NoRope) or self.head_size >= 4,
            "model.head_dim",
            self.head_size,
            "must be at least 4 for RoPE",
            "Use fewer heads, or model/rope=none",
        )
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
        require(self.logit_softcap is None or self.logit_softcap > 0, "model.logit_softcap", self.logit_softcap,
                "must be above 0", "Use 15, or null for none")  # fmt: skip
        require(self.attention_scale > 0, "model.attention_scale", self.attention_scale, "must be above 0",
                "Use 1.0 for 1 / sqrt(head_dim)")  # fmt: skip
        self.layers.check(self.n_layers)
        for part in self.parts:
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
    def parts(self) -> list[Part]:
        """All that declare their own weights."""
        groups = (self.embedding, self.residual, self.branches, self.projections, self.values, self.heads)
        found: list[Part] = [part for group in groups for part in group.values()]
        return found if self.attention is None else [*found, self.attention]

    def has_softmax(self, layer: int) -> bool:
        """Whether a block has softmax attention, and not what stands in its place."""
        return self.attention is None or not self.attention.stands_in(layer, self.n_layers)

    @property
    def softmax_layers(self) -> int:
        """Blocks that have it."""
        return sum(map(self.has_softmax, range(self.n_layers)))

    @property
    def sizes(self) -> Sizes:
        """What parts know of the model."""
        return Sizes(self.d_model, self.n_layers, self.n_heads, self.n_kv_heads, self.head_size, self.vocab_size or 0)

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
        whole = AttentionView(self.sliding_window, rotary=rotary)
        if self.use_attention_sinks:
            sinks = self.sinks
            window = sinks.window if sinks.window is not None else self.max_seq_len - sinks.kept_tokens
            whole = AttentionView(window, sinks.kept_tokens, sinks.learned_rows, sinks.rotated, rotary)
        other = AttentionView(None, rotary=rotary, keeps_keys=False)
        every = range(self.n_layers)
        return [self.layers.of(i, whole, self.max_seq_len) if self.has_softmax(i) else other for i in every]

    def with_vocab_size(self, vocab_size: int) -> ModernLLMConfig:
        """This configuration for a tokenizer of `vocab_size` ids.

        Raises:
            ValueError: `vocab_size` is set already and smaller than the tokenizer's.
        """
        require(
            self.vocab_size is None or self.vocab_size >= vocab_size,
            "model.vocab_size",
            self.vocab_size,
            f"is smaller than the tokenizer's {vocab_size} ids",
            "Use null to take the tokenizer's size",
        )
        return self if self.vocab_size is not None else replace(self, vocab_size=vocab_size)

    def parameters(self, active_only: bool = False) -> Counter[str]:
        """Learned numbers by kind (`parameter_kinds.KINDS`), embeddings included; `active_only` counts `top_k` experts
        per layer instead of all. Exact: a test compares it with the built model."""
        d, head, q_heads, kv_heads = self.d_model, self.head_size, self.n_heads, self.n_kv_heads
        if self.vocab_size is None:
            raise ValueError("model.vocab_size=None: the parameter count needs it. Use with_vocab_size first.")
        qkv = (q_heads + 2 * kv_heads) * head
        attention = d * qkv + q_heads * head * d
        beside = (qkv if self.qkv_bias else 0) + (2 * head if self.qk_norm and self.qk_gain else 0)
        if self.active_sinks is not None:
            beside += self.active_sinks.parameter_count(q_heads, kv_heads, head)
        if self.moe is None:
            matrices = (self.ffn.parts + 1) * d * self.ffn_size
        else:
            experts = self.moe.top_k if active_only else self.moe.n_experts
            matrices = experts * (self.ffn.parts + 1) * d * self.expert_size + self.moe.n_experts * d
        found = Counter({MATRICES: self.softmax_layers * attention + self.n_layers * matrices,
                         VECTORS: self.softmax_layers * beside + self.n_layers * 2 * d + d})  # fmt: skip
        found[HEADS] = self.vocab_size * d
        found[EMBEDDINGS] = 0 if self.tie_embeddings else self.vocab_size * d
        return found + total_counts(self.parts, self.sizes)

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
        found = self.parameters(active_only=True)
        multiplied = found.total() - found[EMBEDDINGS]
        attended = sum(min(seq_len, view.reach(seq_len)) for view in self.views if view.keeps_keys)
        others = self.n_layers - self.softmax_layers
        along = others * self.attention.flops_per_token(self.sizes, seq_len) if self.attention is not None else 0.0
        return 6 * multiplied + 12 * self.n_heads * self.head_size * attended + along
