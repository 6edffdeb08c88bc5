"""Experts as settings: the choices of `model/moe`. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from modern_llm.checks import require
from modern_llm.defaults import Defaults

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
        normalize_weights: several choices are mixed with weights that sum to 1; else with their probabilities among
            all experts.
        router_bias: a bias on the router (gpt-oss).
    """

    n_experts: int = _MOE("n_experts")
    top_k: int = _MOE("top_k")
    expert_hidden_size: int | None = _MOE("expert_hidden_size")
    balance_loss_weight: float = _MOE("balance_loss_weight")
    z_loss_weight: float = _MOE("z_loss_weight")
    normalize_weights: bool = _MOE("normalize_weights")
    router_bias: bool = _MOE("router_bias")

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
