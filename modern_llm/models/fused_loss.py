"""Output head and cross-entropy in one, chunk by chunk: the (tokens x vocabulary) logits never exist at once.

`torch.nn.functional.linear_cross_entropy` (torch >= 2.12) does the same; `benchmarks/loss.py` compares them, and
this one was faster there and also runs on the older torch that the project supports.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.kernels import (
    compiles_passes,
    compute_dtype,
    loss_chunk_elements,
    loss_chunk_multiple,
    padded_vocabulary,
    pass_elements,
    sums_in_fp32,
)
from modern_llm.models.output_head import OutputHead

IGNORE_INDEX = -100  # the target id that carries no loss, as in torch.nn.functional.cross_entropy


def chunk_rows(weight: Tensor, rows: int, held: torch.dtype = torch.float32) -> int:
    """How many of so many rows have their logits held at once, in a type, of a head (V, d): chunks of equal size, but
    for rounding."""
    multiple = loss_chunk_multiple(weight)
    most = max(loss_chunk_elements(weight, held) // len(weight) // multiple * multiple, multiple)
    equal = -(-rows // max(-(-rows // most), 1))
    return max(-(-equal // multiple) * multiple, 1)


def _factor(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The head (V, d) in a type, with rows of zeros below it where the device wants them: the products with these are
    0, whatever passes over logits leaves them out, and so they add nothing to any gradient."""
    rows = padded_vocabulary(weight, dtype)
    if rows == len(weight):
        return weight.to(dtype)
    padded = torch.zeros(rows, weight.shape[1], dtype=dtype, device=weight.device)
    padded[: len(weight)] = weight
    return padded


def _slope(products: Tensor, labels: Tensor, softcap: float | None, size: int) -> tuple[Tensor, Tensor]:
    """Log-likelihood of the targets (n, 1) in fp32, 0 where they are ignored, and the gradient of their summed loss
    with respect to the products, in their own dtype: plain lines, which the compiler makes two passes of.

    Args:
        products: (n, V or more), of which the first `size` = V are logits. labels: (n, 1). softcap: as in `OutputHead`.
    """
    z = products[:, :size].float()
    bend: Tensor | float = 1.0
    if softcap is not None:
        bent = torch.tanh(z / softcap)
        z, bend = bent * softcap, 1 - bent * bent
    ignored = labels == IGNORE_INDEX
    target, kept = labels.masked_fill(ignored, 0), (~ignored).float()
    total = z.logsumexp(-1, keepdim=True)
    hit = torch.arange(z.shape[-1], device=z.device) == target
    slope = ((z - total).exp() - hit.float()) * kept * bend
    return (z.gather(1, target) - total) * kept, F.pad(slope.to(products.dtype), (0, products.shape[1] - size))


@cache
def _compiled_slope() -> Any:
    return torch.compile(_slope)


def _slopes(
    x: Tensor, w: Tensor, targets: Tensor, softcap: float | None, size: int
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Chunk by chunk: its rows, the log-likelihood of its targets (n, 1), 0 where they are ignored, and the gradient
    of its summed loss with respect to the products x W^T (n, V), of their type, whose memory the next chunk takes over.
    Chunks are large for the products; what passes over them goes piece by piece, each of which a CPU's cache holds.

    Args:
        x: (N, d). w: (V or more, d), of the same dtype. targets: (N,). softcap: as in `OutputHead`. size: V.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    rows = chunk_rows(w, len(x), x.dtype)
    buffer: Tensor | None = None
    compiled = compiles_passes(x) and exact == torch.float32
    for start in range(0, len(x), rows):
        where = slice(start, min(start + rows, len(x)))
        labels = targets[where, None]
        if compiled:
            yield where, *_compiled_slope()(torch.mm(x[where], w.t()), labels, softcap, size)
            continue
        if buffer is None:
            buffer = torch.empty(min(rows, len(x)), w.shape[0], dtype=x.dtype, device=x.device)
        products = torch.mm(x[where], w.t(), out=buffer[: len(labels)])
        likelihood = torch.empty(labels.shape, dtype=exact, device=x.device)
        at_once = max(pass_elements(w) // len(w), 1)
        for row in range(0, len(labels), at_once):
            piece = slice(row, row + at_once)
            likelihood[piece] = _slope_in_place(products[piece, :size], labels[piece], softcap, exact)
        yield where, likelihood, products


def _slope_in_place(products: Tensor, labels: Tensor, softcap: float | None, exact: torch.dtype) -> Tensor:
    """`_slope` in the memory of the products (n, V), computed in `exact`; returns the log-likelihoods (n, 1)."""
    ignored = labels == IGNORE_INDEX  # (n, 1)
    labels, kept = labels.masked_fill(ignored, 0), (~ignored).to(exact)
    logits, bend = products.to(exact).contiguous(), None  # (n, V)
    if softcap is not None:
        logits.div_(softcap).tanh_()
        bend = torch.addcmul(logits.new_ones(()), logits, logits, value=-1)  # slope of the cap
        logits.mul_(softcap)
    chance = torch._log_softmax(logits, -1, False, out=logits)
    likelihood = chance.gather(1, labels) * kept
    chance.exp_()
    chance.scatter_add_(1, labels, -torch.ones_like(kept)).mul_(kept)
    if bend is not None:
        chance.mul_(bend)
    if chance.data_ptr() != products.data_ptr():
        products.copy_(chance)
    return likelihood


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and both gradients in the forward pass: the softmax of a chunk is there once and is used for all three,
    so no logits are recomputed and three matrix products do the work of four."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, softcap: float | None
    ) -> Tensor:
        x, w = hidden.to(dtype), _factor(weight, dtype)
        exact = torch.promote_types(dtype, torch.float32)
        grad_hidden = torch.empty_like(x)
        grad_weight = _sum_of_products(w, len(x), exact) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=exact, device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for where, likelihood, slope in _slopes(x, w, targets, softcap, len(weight)):
                total -= likelihood.sum()
                torch.mm(slope, w, out=grad_hidden[where])
                if grad_weight is not None:
                    _add_product(grad_weight, slope, x[where], first=where.start == 0)
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight[: len(weight)])
        ctx.dtypes = hidden.dtype, weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        # In place: the (V, d) gradient of a small model's head is its largest tensor.
        grad_hidden = (grad_hidden.to(grad.dtype) * grad).to(hidden_dtype)
        grad_weight = None if grad_weight is None else grad_weight.mul_(grad).to(weight_dtype)
        return grad_hidden, grad_weight, None, None, None


def _sum_of_products(w: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """What `_add_product` adds to, like w (V, d): its first product writes it."""
    return (torch.empty if rows else torch.zeros)(w.shape, dtype=dtype, device=w.device)


def _add_product(total: Tensor, slope: Tensor, piece: Tensor, first: bool) -> None:
    """total (V, d) += slope (n, V) transposed times piece (n, d); the first one replaces what was there."""
    if first and total.dtype == slope.dtype:
        torch.mm(slope.t(), piece, out=total)
    elif first:
        total.copy_(slope.t() @ piece)
    elif total.dtype == slope.dtype:
        total.addmm_(slope.t(), piece)
    elif sums_in_fp32(total, slope.dtype):
        torch.addmm(total, slope.t(), piece, out_dtype=total.dtype, out=total)
    else:  # summed in fp32: 16-bit sums over many chunks lose the small terms
        total += slope.t() @ piece


class _LinearTokenNLL(torch.autograd.Function):
    """The loss of every target by itself. Gradients of the hidden states are made in the forward pass and weighted in
    the backward pass. The head's own gradient mixes the targets, so it can only be made once their weights are known:
    where the head is trained, its logits are computed a second time; under adapters it is frozen, and nothing is."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, softcap: float | None
    ) -> Tensor:
        x, w = hidden.to(dtype), _factor(weight, dtype)
        grad_hidden = torch.empty_like(x)
        nll = torch.empty(len(x), dtype=torch.promote_types(dtype, torch.float32), device=x.device)
        with torch.autocast(x.device.type, enabled=False):
            for where, likelihood, slope in _slopes(x, w, targets, softcap, len(weight)):
                nll[where] = -likelihood[:, 0]
                torch.mm(slope, w, out=grad_hidden[where])
        again = (hidden, weight, targets) if ctx.needs_input_grad[1] else ()
        ctx.save_for_backward(grad_hidden, *again)
        ctx.dtypes, ctx.softcap = (hidden.dtype, dtype), softcap
        return nll

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs  # (N,)
        grad_hidden, *again = ctx.saved_tensors
        hidden_dtype, dtype = ctx.dtypes
        grad_weight = None
        if again:
            x, w, targets = again[0].to(dtype), _factor(again[1], dtype), again[2]
            grad_weight = _sum_of_products(w, len(x), grad.dtype)
            with torch.autocast(x.device.type, enabled=False):
                for where, _, slope in _slopes(x, w, targets, ctx.softcap, len(again[1])):
                    _add_product(grad_weight, slope.mul_(grad[where, None]), x[where], first=where.start == 0)
            grad_weight = grad_weight[: len(again[1])].to(again[1].dtype)
        return (grad_hidden.to(grad.dtype) * grad[:, None]).to(hidden_dtype), grad_weight, None, None, None


def linear_cross_entropy(hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
    """Summed cross-entropy of the softmax of the head's logits against targets, in nats.

    Args:
        hidden: (..., d) last hidden states.
        head: of (V, d).
        targets: (...) token ids; `IGNORE_INDEX` carries no loss.

    Returns:
        Scalar in fp32 (float64 for float64 input). Divide by the number of targets for the mean. Backward may run
        once.
    """
    labels = targets.reshape(-1)
    if not torch.is_grad_enabled():
        return token_nll(hidden, head, targets).sum()
    flat = head.scaled(hidden).reshape(-1, hidden.shape[-1])
    return _LinearCrossEntropy.apply(flat, head.weight, labels, compute_dtype(hidden), head.softcap)


def linear_token_nll(hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
    """Cross-entropy of each target by itself, with gradients: for losses that weigh or combine them, such as those on
    log-probabilities of whole answers. `linear_cross_entropy` is cheaper where all count alike.

    Args:
        hidden: (..., d). head: of (V, d). targets: (...); `IGNORE_INDEX` gives 0.

    Returns:
        The shape of targets, in nats, fp32 (float64 for float64 input).
    """
    if not torch.is_grad_enabled():
        return token_nll(hidden, head, targets)
    flat, labels = head.scaled(hidden).reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    losses = _LinearTokenNLL.apply(flat, head.weight, labels, compute_dtype(hidden), head.softcap)
    return losses.view(targets.shape)


@torch.no_grad()
def token_nll(hidden: Tensor, head: OutputHead, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target in nats, without gradient; 0 where the target is ignored.

    Args:
        hidden: (..., d). head: of (V, d). targets: (...).

    Returns:
        The shape of targets, fp32 (float64 for float64 input).
    """
    dtype = compute_dtype(hidden)
    flat, labels = hidden.reshape(-1, hidden.shape[-1]).to(dtype), targets.reshape(-1)
    head = head._replace(weight=head.weight.to(dtype))
    pieces = []
    rows = chunk_rows(head.weight, len(flat))
    for start in range(0, len(flat), rows):
        logits = head.logits(flat[start : start + rows])
        pieces.append(
            F.cross_entropy(logits, labels[start : start + rows], reduction="none", ignore_index=IGNORE_INDEX)
        )
    return torch.cat(pieces).view(targets.shape) if pieces else targets.to(torch.promote_types(dtype, torch.float32))
