"""Mixtral (Jiang et al. 2024, arXiv 2401.04088): experts, whose weights sum to 1."""

from __future__ import annotations

from typing import Any

from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.feed_forward.mixture import MoEConfig
from modern_llm.models.interop.architectures.mistral import Mistral
from modern_llm.models.interop.foreign import ForeignConfig
from modern_llm.models.interop.weights import LLAMA, with_layer

EXPERTS = {
    "ffn.router": "mlp.gate",
    "ffn.gate_up_proj": "mlp.experts.gate_up_proj",
    "ffn.down_proj": "mlp.experts.down_proj",
}


class Mixtral(Mistral):
    model_type = "mixtral"
    names = with_layer(LLAMA, EXPERTS)

    def settings(self, theirs: ForeignConfig) -> dict[str, Any]:
        theirs.only("router_jitter_noise", 0.0)
        return super().settings(theirs) | {"moe": experts(theirs)}

    def keys(self, config: ModernLLMConfig) -> dict[str, Any]:
        return super().keys(config) | written_experts(config.moe)


def experts(
    theirs: ForeignConfig, shares: bool = True, router_bias: bool = False, name: str = "num_local_experts"
) -> MoEConfig:
    """The experts of every layer.

    Args:
        shares: whether the weights of a token's experts sum to 1.
        router_bias: whether the router has a bias.
        name: of the number of experts.
    """
    top_k = theirs("num_experts_per_tok")
    if top_k == 1 and shares:
        theirs.refuse("num_experts_per_tok", "the weight of a single expert is 1 there and its probability here")
    return MoEConfig(
        n_experts=theirs(name),
        top_k=top_k,
        balance_loss_weight=theirs("router_aux_loss_coef"),
        normalize_weights=shares,
        router_bias=router_bias,
    )


def written_experts(moe: MoEConfig | None, name: str = "num_local_experts") -> dict[str, Any]:
    """Their keys; of a model without experts, those of two."""
    if moe is None:
        return {name: 2, "num_experts_per_tok": 2}
    return {
        name: moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "router_aux_loss_coef": moe.balance_loss_weight,
    }
