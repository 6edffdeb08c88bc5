"""Attention with a soft cap on its scores, which the fused kernels do not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """c tanh(x / c) (Gemma 2, arXiv 2408.00118, section 2); None: x as it is."""
    return x if cap is None else x.div(cap).tanh().mul(cap)


def capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float, dropout: float, cap: float
) -> Tensor:
    """softmax(c tanh(scale q k^T / c) + mask) v (Gemma 2, arXiv 2408.00118, section 2), with the scores of all tokens
    in memory while it computes, and not until the backward pass.

    Args:
        q, k, v, mask, causal, scale, dropout: as in `fused_attention`.
        cap: c, above 0.

    Returns:
        (B, T, H, D).
    """
    k, v = k.to(q.dtype), v.to(q.dtype)
    grouped = q.unflatten(2, (k.shape[2], -1))  # (B, T, Hkv, G, D)
    if mask is None and causal:
        mask = q.new_full((q.shape[1], k.shape[1]), -torch.inf).triu(1)
    elif mask is not None:
        mask = mask[:, :, None]  # (1 or B, 1, 1, T, n)
    if dropout or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        out = _mixed(F.dropout(_weights(grouped, k, mask, scale, cap)[0], dropout), v)
    else:
        out = _CappedAttention.apply(grouped, k, v, mask, scale, cap)
    return out.flatten(2, 3)


def _weights(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, cap: float) -> tuple[Tensor, Tensor]:
    """(B, Hkv, G, T, n) how much each query attends to each key, and tanh of the scores, in fp32 at least."""
    scores = torch.einsum("btkgd,bnkd->bkgtn", q, k)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    bent = scores.mul(scale / cap).tanh()
    capped = bent * cap if mask is None else bent * cap + mask
    return capped.softmax(dim=-1), bent


def _mixed(weights: Tensor, v: Tensor) -> Tensor:
    """(B, T, Hkv, G, D)."""
    return torch.einsum("bkgtn,bnkd->btkgd", weights.to(v.dtype), v)


class _CappedAttention(torch.autograd.Function):
    """Keeps queries, keys and values alone: the weights, of every token for every other, are made again."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        ctx.scale, ctx.cap = scale, cap
        return _mixed(_weights(q, k, mask, scale, cap)[0], v)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        q, k, v, mask = ctx.saved_tensors
        grad = grad.to(q.dtype)
        weights, bent = _weights(q, k, mask, ctx.scale, ctx.cap)
        grad_weights = torch.einsum("btkgd,bnkd->bkgtn", grad, v).to(weights.dtype)
        grad_v = torch.einsum("bkgtn,btkgd->bnkd", weights.to(grad.dtype), grad)
        inner = (grad_weights * weights).sum(-1, keepdim=True)
        grad_scores = weights * (grad_weights - inner) * (1 - bent * bent) * ctx.scale
        grad_scores = grad_scores.to(q.dtype)
        grad_q = torch.einsum("bkgtn,bnkd->btkgd", grad_scores, k)
        return grad_q, torch.einsum("bkgtn,btkgd->bnkd", grad_scores, q), grad_v, None, None, None
