"""Sorted expert routing against a loop over tokens, and the auxiliary losses against their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.config import MoEConfig
from modern_llm.models.feed_forward.experts import (
    MoE,
    _experts_grouped,
    _experts_in_turn,
    expert_counts,
    load_balance_loss,
)
from modern_llm.models.feed_forward.kinds import ClampedSwiGLU, FeedForwardKind, GeGLU, ReLU2, SwiGLU

D, HIDDEN = 8, 16


def _moe(
    loud,
    experts: int,
    top_k: int,
    dtype: torch.dtype = torch.float64,
    kind: FeedForwardKind | None = None,
    bias: bool = False,
) -> MoE:
    config = MoEConfig(experts, top_k, router_bias=bias)
    return loud(MoE(config, kind or SwiGLU(), D, HIDDEN, bias)).to(dtype)


def _input(*shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()


def _token_by_token(moe: MoE, x: Tensor) -> Tensor:
    rows = []
    for token in x.reshape(-1, D):
        chance = (moe.router.weight @ token).softmax(0)
        best = chance.argsort(descending=True)[: moe.top_k].tolist()
        mixed = torch.zeros_like(token)
        total = chance[best].sum() if moe.top_k > 1 else 1
        for expert in best:
            first, second = moe.experts[:2]
            hidden = first[expert] @ token
            if isinstance(moe.kind, ReLU2):
                hidden = hidden.clamp(min=0) ** 2
            else:
                gate, up = hidden.split(HIDDEN)
                act = F.silu(gate) if isinstance(moe.kind, SwiGLU) else F.gelu(gate, approximate="tanh")
                hidden = act * up
            mixed = mixed + chance[expert] / total * (second[expert] @ hidden)
        rows.append(mixed)
    return torch.stack(rows).view(x.shape)


@pytest.mark.parametrize("kind", [SwiGLU(), GeGLU(), ReLU2()], ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize(("experts", "top_k"), [(4, 1), (4, 2), (5, 3), (3, 3)])
def test_sorted_routing_equals_a_loop_over_tokens(loud, experts, top_k, kind):
    moe, x = _moe(loud, experts, top_k, kind=kind), _input(3, 7)
    got, routing = moe(x)
    expected = _token_by_token(moe, x)
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)
    cotangent = torch.randn(got.shape, generator=torch.Generator().manual_seed(4), dtype=got.dtype)
    inputs = [x, *moe.experts[:2], moe.router.weight]
    mine, other = (torch.autograd.grad(out, inputs, cotangent) for out in (got, expected))
    for one, reference in zip(mine, other, strict=True):
        assert reference.abs().max() > 1e-3
        torch.testing.assert_close(one, reference, atol=1e-10, rtol=1e-10)
    counted = F.one_hot(routing.experts, experts).sum((0, 1)) / (21 * top_k)
    torch.testing.assert_close(routing.load, counted.to(routing.load.dtype))


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_learns_from_the_loss(loud, top_k):
    """Its gradient is the finite difference of what comes out, where the choices stay as they are."""
    moe, x = _moe(loud, 4, top_k), _input(2, 6).detach()
    moe(x)[0].sum().backward()
    weight, got = moe.router.weight, moe.router.weight.grad
    assert got.abs().max() > 1e-2
    step = 1e-6
    for expert, column in ((0, 0), (1, 3), (3, 7)):
        outputs = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[expert, column] += sign * step
                outputs.append(moe(x)[0].sum())
                weight[expert, column] -= sign * step
        difference = (outputs[0] - outputs[1]) / (2 * step)
        torch.testing.assert_close(got[expert, column], difference, atol=1e-6, rtol=1e-6)


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="torch has no grouped_mm")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("counts", [[5, 9, 2, 8], [0, 24, 0, 0], [12, 0, 12, 0]])
def test_grouped_experts_equal_experts_in_turn(loud, counts, bias):
    moe = _moe(loud, 4, 2, torch.bfloat16, bias=bias)
    x = torch.randn(24, D, generator=torch.Generator().manual_seed(2)).bfloat16()
    arguments = x, torch.tensor(counts), moe.experts, moe.kind
    with torch.no_grad():
        expected = _experts_in_turn(*arguments)
        got = _experts_grouped(*arguments)
    torch.testing.assert_close(got, expected, atol=0.04, rtol=0.02)


@pytest.mark.parametrize("kind", [SwiGLU(), ClampedSwiGLU(limit=0.5)], ids=lambda kind: type(kind).__name__)
def test_experts_with_biases_and_plain_probabilities(loud, kind):
    moe, x = _moe(loud, 4, 2, kind=kind, bias=True), _input(2, 6).detach()
    moe.shares = False
    first, down, first_bias, down_bias = moe.experts
    expected = torch.zeros_like(x)
    chance = (x @ moe.router.weight.T + moe.router.bias).softmax(-1)
    for expert in range(4):
        gate, up = (x @ first[expert].T + first_bias[expert]).split(HIDDEN, dim=-1)
        if isinstance(kind, SwiGLU):
            hidden = gate * gate.sigmoid() * up
        else:
            gate = gate.clamp(max=0.5)
            hidden = gate * (1.702 * gate).sigmoid() * (up.clamp(-0.5, 0.5) + 1)
        chosen = (chance >= chance.topk(2).values[..., -1:])[..., expert, None]
        expected += chosen * chance[..., expert, None] * (hidden @ down[expert].T + down_bias[expert])
    torch.testing.assert_close(moe(x)[0], expected, atol=1e-10, rtol=1e-10)


def test_an_expert_without_tokens(loud):
    moe, x = _moe(loud, 4, 2), _input(1, 9).detach().abs()
    with torch.no_grad():
        moe.router.weight[2] = -10.0  # every input is positive: nobody chooses expert 2
    x.requires_grad_()
    got, routing = moe(x)
    assert routing.load[2] == 0
    torch.testing.assert_close(got, _token_by_token(moe, x), atol=1e-10, rtol=1e-10)
    got.sum().backward()
    assert not moe.gate_up_proj.grad[2].any()
    assert moe.gate_up_proj.grad.abs().amax((1, 2)).gt(0).equal(routing.load > 0)


def test_one_token_alone_equals_its_place_in_a_batch(loud):
    moe, x = _moe(loud, 4, 2), _input(2, 6)
    torch.testing.assert_close(moe(x[1:, 3:4])[0], moe(x)[0][1:, 3:4])


def _load(experts: Tensor, n_experts: int) -> Tensor:
    return expert_counts(experts, n_experts) / experts.numel()


def test_balance_loss_by_hand():
    # Two tokens, three experts, two choices each: experts 0 and 1, then 0 and 2.
    # f = (2/4, 1/4, 1/4). P = mean of (.5, .3, .2) and (.6, .1, .3) = (.55, .2, .25).
    # 3 * (.5 * .55 + .25 * .2 + .25 * .25) = 3 * .3875 = 1.1625
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3]])
    experts = torch.tensor([[0, 1], [0, 2]])
    torch.testing.assert_close(load_balance_loss(probabilities, _load(experts, 3)), torch.tensor(1.1625))


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_loss_is_one_when_even_and_largest_when_collapsed(top_k):
    even = torch.arange(8).repeat(top_k).view(8, top_k) % 4
    torch.testing.assert_close(load_balance_loss(torch.full((8, 4), 0.25), _load(even, 4)), torch.tensor(1.0))
    collapsed = torch.arange(top_k).expand(8, top_k)
    peaked = torch.zeros(8, 4).index_fill(1, torch.arange(top_k), 1 / top_k)
    torch.testing.assert_close(load_balance_loss(peaked, _load(collapsed, 4)), torch.tensor(4 / top_k))


def test_auxiliary_losses_reach_the_loss_with_their_weights(tiny, token_ids):
    """Switch eq. 4 and ST-MoE eq. 5, from the routers' own inputs; mean over layers."""
    model = tiny(moe=MoEConfig(4, 2, balance_loss_weight=0.7, z_loss_weight=0.02), tie_embeddings=False)
    ids, seen = token_ids(2, 10), []
    handles = [b.ffn.router.register_forward_hook(lambda m, i, out: seen.append(out)) for b in model.blocks]
    output = model(ids, labels=ids)
    for handle in handles:
        handle.remove()
    balance, z_loss, load = [], [], []
    for logits in seen:  # (20, 4)
        chance = logits.softmax(-1)
        chosen = torch.zeros_like(chance).scatter(1, chance.topk(2).indices, 0.5)
        load.append(chosen.mean(0))
        balance.append(4 * (chosen.mean(0) * chance.mean(0)).sum())
        z_loss.append((logits.exp().sum(-1).log() ** 2).mean())
    torch.testing.assert_close(output.aux_losses["balance_loss"], 0.7 * torch.stack(balance).mean())
    torch.testing.assert_close(output.aux_losses["z_loss"], 0.02 * torch.stack(z_loss).mean())
    torch.testing.assert_close(output.expert_load, torch.stack(load).detach())
    nll = F.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
    torch.testing.assert_close(output.loss, nll + sum(output.aux_losses.values()))
