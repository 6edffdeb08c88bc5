"""Mixture of experts with capacity-free top-k routing.

Shazeer et al. 2017 (arXiv 1701.06538); Switch Transformer (Fedus et al. 2021, arXiv 2101.03961); Mixtral (Jiang
et al. 2024, arXiv 2401.04088).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.feed_forward.dense import activate, activated_linear, input_name
from modern_llm.models.feed_forward.kinds import FeedForwardKind
from modern_llm.models.feed_forward.mixture import MoEConfig
from modern_llm.models.kernels import compute_dtype, device_of, takes_grouped_products
from modern_llm.models.linear import Linear, linear
from modern_llm.models.parameter_kinds import MATRICES, VECTORS


class Routing(NamedTuple):
    """What the router decided for N tokens and E experts."""

    experts: Tensor  # (N, k) chosen experts, best first
    weights: Tensor  # (N, k) mixing weights, fp32 at least
    balance_loss: Tensor  # scalar, 1 when the load is even
    z_loss: Tensor  # scalar
    load: Tensor  # (E,) share of the assignments that each expert got
    counts: Tensor  # (E,) tokens that each expert gets here


def expert_counts(experts: Tensor, n_experts: int) -> Tensor:
    """(E,) how often each expert stands in experts (N, k); the sum stays on the device."""
    assigned = experts.detach().flatten()
    return torch.zeros(n_experts, dtype=torch.long, device=experts.device).scatter_add_(
        0, assigned, torch.ones_like(assigned)
    )


def load_balance_loss(probabilities: Tensor, load: Tensor) -> Tensor:
    """E * sum_i f_i P_i, f_i the share of assignments to expert i, P_i its mean router probability (Fedus et al.
    2021, eq. 4 to 6, for k choices per token); 1 when even, at most E / k.

    The shares have no gradient, so with those of a whole batch the losses of its parts add up to the batch's own (Qiu
    et al. 2025, arXiv 2501.11873, on why the shares of larger batches are the better ones).

    Args:
        probabilities: (N, E) softmax of the router, in fp32 at least.
        load: (E,) shares.
    """
    return probabilities.shape[-1] * torch.dot(load.to(probabilities.dtype), probabilities.mean(0))


class ExpertWeights(NamedTuple):
    """The maps of E experts with F hidden channels."""

    first: Tensor  # (E, parts F, d_model)
    down: Tensor  # (E, d_model, F)
    first_bias: Tensor | None = None  # (E, parts F)
    down_bias: Tensor | None = None  # (E, d_model)


def _experts_in_turn(x: Tensor, counts: Tensor, weights: ExpertWeights, kind: FeedForwardKind) -> Tensor:
    """Each expert on its contiguous slice of the sorted tokens; reads the counts on the host."""
    E = len(weights.first)
    first_bias, down_bias = ([None] * E if bias is None else bias for bias in (weights.first_bias, weights.down_bias))
    each = zip(x.split(counts.tolist()), weights.first, weights.down, first_bias, down_bias, strict=True)
    return torch.cat([activated_linear(linear(p, f, fb), d, kind, db) for p, f, d, fb, db in each])


def _experts_grouped(x: Tensor, counts: Tensor, weights: ExpertWeights, kind: FeedForwardKind) -> Tensor:
    """All experts in two grouped matrix products, whose sizes stay on the device."""
    ends = counts.cumsum(0).to(torch.int32)
    dtype, rows = compute_dtype(x), torch.arange(len(x), device=x.device)
    expert = torch.searchsorted(ends, rows, right=True) if weights.first_bias is not None else None  # of each row

    def product(x: Tensor, maps: Tensor, bias: Tensor | None) -> Tensor:
        out = F.grouped_mm(x, maps.to(dtype).transpose(1, 2), offs=ends)
        return out if bias is None else out + bias.to(dtype)[expert]

    hidden = activate(product(x.to(dtype), weights.first, weights.first_bias), kind)
    return product(hidden.to(dtype), weights.down, weights.down_bias)


class MoE(nn.Module):
    """Top-k routed experts; tokens are sorted by expert, so that each expert multiplies one contiguous slice.

    Args:
        config: number of experts, choices per token, loss weights.
        kind: of each expert.
        d_model: width of input and output.
        hidden_size: hidden width of one expert.
        bias: whether the maps of the experts have biases.
    """

    def __init__(
        self, config: MoEConfig, kind: FeedForwardKind, d_model: int, hidden_size: int, bias: bool = False
    ) -> None:
        super().__init__()
        self.top_k, self.kind = config.top_k, kind
        self.shares = config.normalize_weights and config.top_k > 1
        self.router = Linear(d_model, config.n_experts, config.router_bias)
        first = nn.Parameter(torch.empty(config.n_experts, kind.parts * hidden_size, d_model))
        self.register_parameter(input_name(kind), first)
        self.down_proj = nn.Parameter(torch.empty(config.n_experts, d_model, hidden_size))
        self.stacked_rows = {input_name(kind): (hidden_size,) * kind.parts}
        for name, size in ((f"{input_name(kind)}_bias", kind.parts * hidden_size), ("down_proj_bias", d_model)):
            self.register_parameter(name, nn.Parameter(torch.empty(config.n_experts, size)) if bias else None)

    def parameter_kind(self, name: str) -> str:
        """What a weight is, for optimisers."""
        return VECTORS if name.endswith("_bias") else MATRICES

    @property
    def experts(self) -> ExpertWeights:
        """The maps of all experts."""
        first, down = input_name(self.kind), "down_proj"
        return ExpertWeights(*(getattr(self, name) for name in (first, down, f"{first}_bias", f"{down}_bias")))

    def route(self, x: Tensor, load: Tensor | None = None) -> Routing:
        """Choose experts for x (N, d_model). The softmax runs in fp32 at least (Fedus et al. 2021, section 2.4).

        Several choices are mixed with weights that sum to 1 (Jiang et al. 2024, section 2.1), unless
        `normalize_weights` is off. A single one keeps its probability (Fedus et al. 2021, eq. 2): as a share of itself
        it would be 1, and the router would learn nothing from the loss.

        Args:
            load: (E,) share of each expert in the whole batch, of which x is a part; None: x is all.
        """
        logits = self.router(x)  # (N, E)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        probabilities = logits.softmax(dim=-1)
        weights, experts = probabilities.topk(self.top_k, dim=-1)
        counts = expert_counts(experts, logits.shape[-1])
        if load is None:
            load = counts.to(logits.dtype) / experts.numel()
        balance = load_balance_loss(probabilities, load)
        z_loss = logits.logsumexp(dim=-1).square().mean()
        if self.shares:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return Routing(experts, weights, balance, z_loss, load, counts)

    def forward(self, x: Tensor, load: Tensor | None = None) -> tuple[Tensor, Routing]:
        """x: (B, T, d_model); load as in `route`. Returns the mixture, same shape, and the routing of its B T
        tokens."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, d_model)
        routing = self.route(tokens, load)
        order = routing.experts.flatten().argsort(stable=True)  # (N k,) assignments sorted by expert
        source = order // self.top_k  # the token behind each assignment
        grouped = takes_grouped_products(compute_dtype(x), tuple(self.down_proj.shape[1:]), device_of(x))
        run = _experts_grouped if grouped else _experts_in_turn
        outputs = run(tokens[source], routing.counts, self.experts, self.kind)  # (N k, d_model)
        weights = routing.weights.flatten()[order, None].to(outputs.dtype)
        mixed = torch.zeros_like(tokens, dtype=outputs.dtype).index_add(0, source, outputs * weights)
        return mixed.view(x.shape), routing
