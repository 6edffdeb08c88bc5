"""Every part of `model/`, loud: with weights far from their neutral values, in the sizes of a tiny decoder."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import NoRope, PlainRope
from modern_llm.models.attention.sinks import LearnableSinks, StreamingSinks
from modern_llm.models.branches.short_convolution import ShortConvolution
from modern_llm.models.embedding.learned_positions import LearnedPositions
from modern_llm.models.embedding.normed import NormedEmbedding
from modern_llm.models.embedding.smear import Smear
from modern_llm.models.feed_forward.kinds import GELU, ClampedSwiGLU
from modern_llm.models.heads.gated import GatedHeads
from modern_llm.models.norm_kinds import LayerNormKind
from modern_llm.models.projections.short_convolution import ProjectionConvolution
from modern_llm.models.residual.backout import Backout
from modern_llm.models.residual.scaled import ScaledResidual
from modern_llm.models.residual.unet import UNetSkips
from modern_llm.models.values.value_embedding import ValueProjection, ValueTable
from modern_llm.models.values.value_residual import ValueResidual

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples" / "lab"))
from my_lab.attention import LinearAttention
from my_lab.state_space import StateSpace


def from_page(page: str, name: str) -> Any:
    """A class that a page of the docs shows."""
    text = (Path(__file__).resolve().parents[1] / "docs" / "extend" / f"{page}.md").read_text()
    (code,) = re.findall(r"^```python[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    module = sys.modules[f"page_{page}"] = ModuleType(f"page_{page}")  # so that a configuration can name its classes
    exec(compile(code, page, "exec", dont_inherit=True), module.__dict__)
    return getattr(module, name)


Parallel = from_page("block", "Parallel")

PARTS: dict[str, dict[str, Any]] = {
    "normed": {"embedding": {"normed": NormedEmbedding()}},
    "smear": {"embedding": {"smear": Smear()}},
    "scaled": {"residual": {"scaled": ScaledResidual()}},
    "unet": {"residual": {"unet": UNetSkips()}},
    "backout": {"residual": {"backout": Backout()}},
    "canon": {"branches": {"canon": ShortConvolution(width=3)}},
    "canon of attention": {"branches": {"canon": ShortConvolution(width=4, places="attention")}},
    "canon of projections": {"projections": {"canon": ProjectionConvolution(width=3)}},
    "value_residual": {"values": {"value_residual": ValueResidual()}},
    "value_table": {"values": {"value_table": ValueTable()}},
    "value_table without a gate": {"values": {"value_table": ValueTable(layers="all", gate_channels=None)}},
    "value_projection": {"values": {"value_projection": ValueProjection()}},
    "gated": {"heads": {"gated": GatedHeads()}},
    "linear attention": {"attention": LinearAttention()},
    "linear attention in every second block": {"attention": LinearAttention(every=2)},
    "parallel blocks": {"block": Parallel(wider=2)},
    "parallel blocks, windows, some without positions": {
        "block": Parallel(wider=1), "layers": LayerPattern("LS", 5, "RN")},
    "state spaces": {"block": StateSpace(state_size=5, width=3)},
    "state spaces, every second block ours": {"block": StateSpace(state_size=5, every=2)},
    "no gain": {"qk_norm": True, "qk_gain": False, "attention_scale": 1.44},
    "softcap": {"logit_softcap": 5.0},
    "norms behind": {"norm_place": "behind"},
    "layer norms on both sides, biases": {
        "norm": LayerNormKind(), "norm_place": "both", "qkv_bias": True, "o_bias": True, "ffn_bias": True},
    "scales": {"embedding_scale": 2.0, "branch_scale": 0.6, "logit_scale": 0.4},
    "attention softcap": {"attention_softcap": 1.5},
    "norms over all heads": {"qk_norm": True, "qk_norm_per_head": False},
    "two bases, partly rotated": {"rope": PlainRope(fraction=0.75), "layers": LayerPattern("S", 8, "RB", 100.0)},
    "learned positions": {"embedding": {"learned_positions": LearnedPositions()}, "rope": NoRope()},
    "clamped": {"ffn": ClampedSwiGLU(limit=0.5), "ffn_bias": True},
    "gelu": {"ffn": GELU(), "ffn_bias": True},
}  # fmt: skip
ALL: dict[str, Any] = {
    "embedding": {"normed": NormedEmbedding(), "smear": Smear()},
    "residual": {"scaled": ScaledResidual(), "unet": UNetSkips(), "backout": Backout()},
    "branches": {"canon": ShortConvolution(width=4)},
    "projections": {"canon": ProjectionConvolution(width=4)},
    "values": {"value_residual": ValueResidual(), "value_table": ValueTable(), "value_projection": ValueProjection()},
    "heads": {"gated": GatedHeads()},
    "qk_norm": True,
    "qk_gain": False,
    "attention_scale": 1.44,
    "attention_softcap": 1.5,
    "logit_softcap": 5.0,
    "embedding_scale": 2.0,
    "branch_scale": 0.6,
    "logit_scale": 0.7,
    "norm_place": "both",
    "o_bias": True,
    "ffn_bias": True,
    "tie_embeddings": False,
}
EVERY = PARTS | {"all": ALL}
# Layers that see unlike each other, under sinks.
UNLIKE_LAYERS: dict[str, dict[str, Any]] = {
    "learnable, short and long, some without positions": {
        "n_layers": 4,
        "group_size": 2,
        "use_attention_sinks": True,
        "sinks": LearnableSinks(window=7, num_sinks=3),
        "layers": LayerPattern("SSL", 4, "RRN"),
    },
    "streaming, two bases, partly rotated, capped": {
        "n_layers": 4,
        "group_size": 2,
        "use_attention_sinks": True,
        "sinks": StreamingSinks(window=5, num_sinks=2),
        "layers": LayerPattern("SL", 3, "RB", 100.0),
        "rope": PlainRope(fraction=0.75),
        "attention_softcap": 1.5,
    },
    "streaming, short and long, some without positions": {
        "n_layers": 4,
        "use_attention_sinks": True,
        "sinks": StreamingSinks(window=5, num_sinks=2),
        "layers": LayerPattern("SL", 3, "RN"),
    },
}
