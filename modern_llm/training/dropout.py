"""Dropout that belongs to the rows of the batch of a step, so that a step comes out the same however it is cut.

torch draws the masks of a whole tensor from one stream of random numbers, which the size of a micro-batch shifts. Here
the mask of a row depends on the seed of the step, on how many dropouts came before in the forward pass, and on the
number of the row in the batch of the step, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modern_llm.models.kernels import may_be_compiled

_DRAWS = 4  # numbers of 16 bits in one that is drawn
_WHOLE = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes
_PASS = 2**17  # numbers that a CPU's cache holds from the first to the last pass


def mixed(*numbers: int) -> int:
    """A seed in 32 bits, all that torch's CPU generator reads, far apart for neighbours (splitmix64, Steele et al.
    2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
        state ^= state >> 31
    return state % 2**32


@contextmanager
def dropout_by_row(seed: int, first_row: int, rows: int) -> Iterator[None]:
    """While this is open, dropout draws its masks by row: for a micro-batch, forward and backward.

    `torch.nn.functional.dropout` and the dropout inside `scaled_dot_product_attention` are replaced, which every
    dropout of this project, of transformers and of peft goes through. A recomputed block draws the masks of its first
    pass, because activation checkpointing winds back the CPU's generator, from which the number of each call comes.
    The cost is one draw per row instead of one per tensor, and one attention call per row where attention has dropout.

    Args:
        seed: of the step.
        first_row: place of the micro-batch's first row in the batch of the step.
        rows: of the micro-batch.
    """
    before = torch.get_rng_state()
    plain_dropout, plain_attention = F.dropout, F.scaled_dot_product_attention
    masks = _RowMasks(first_row, rows)

    def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0 or p == 1:
            return plain_dropout(input, p, training, inplace)
        return (_outside_graphs() if may_be_compiled() else _RowMasks.drop)(masks, input, p, inplace)

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
                  dropout_p: float = 0.0, is_causal: bool = False, **more: Any) -> Tensor:  # fmt: skip
        if dropout_p == 0:
            return plain_attention(query, key, value, attn_mask, 0.0, is_causal, **more)
        pieces = []
        for row in masks.seeded_rows(query):
            mask = attn_mask if attn_mask is None or attn_mask.dim() < 4 or len(attn_mask) == 1 else attn_mask[row]
            pieces.append(plain_attention(query[row], key[row], value[row], mask, dropout_p, is_causal, **more))
        return torch.cat(pieces)

    torch.default_generator.manual_seed(seed)
    functional: Any = F
    functional.dropout, functional.scaled_dot_product_attention = dropout, attention
    try:
        yield
    finally:
        functional.dropout, functional.scaled_dot_product_attention = plain_dropout, plain_attention
        torch.set_rng_state(before)


class _RowMasks:
    """Draws for the rows of one micro-batch."""

    def __init__(self, first_row: int, rows: int) -> None:
        self.first_row, self.rows = first_row, rows

    @staticmethod
    def _call() -> int:
        """A number for this call: the same in every micro-batch of a step."""
        return int(torch.empty((), dtype=torch.int64, device="cpu").random_())

    def drop(self, x: Tensor, p: float, inplace: bool) -> Tensor:
        """x with a share p of its numbers set to 0 and the others divided by 1 - p."""
        call, generator = self._call(), torch.Generator(x.device)
        # A tensor without the rows of the batch, such as positions that all texts share, has the same mask everywhere.
        rows = self.rows if x.dim() and len(x) % self.rows == 0 else 1
        first = self.first_row if rows == self.rows else 0
        on_cpu, size = x.device.type == "cpu", x.numel() // rows
        kept = torch.empty(rows, size, dtype=torch.int8 if on_cpu else torch.bool, device=x.device)
        for row in range(rows):
            generator.manual_seed(mixed(call, first + row))
            if on_cpu:
                drawn = torch.empty(-(-size // _DRAWS), dtype=torch.int64, device=x.device)
                kept[row] = _not_below(drawn.random_(-(2**63), None, generator=generator), p)[:size]
            else:
                kept[row].bernoulli_(1 - p, generator=generator)
        kept = kept.view(x.shape)
        return x.mul_(kept).div_(p - 1 if on_cpu else 1 - p) if inplace else _Dropped.apply(x, kept, 1 / (1 - p))

    def seeded_rows(self, x: Tensor) -> Iterator[slice]:
        """One row of x after the other, with torch's own generators seeded for it."""
        call = self._call()
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            for row in range(len(x)):
                torch.manual_seed(mixed(call, self.first_row + row))
                yield slice(row, row + 1)


def _not_below(drawn: Tensor, p: float) -> Tensor:
    """From random bits (n,) in int64, (4 n,): 0 in a share p, to a 32768th, and -1 elsewhere. It costs a CPU a quarter
    of Bernoulli's draws, which take 64 bits for each."""
    short = drawn.view(torch.int16).bitwise_right_shift_(1)  # in [-2^14, 2^14): the difference below fits
    return short.sub_(round(p * 2**15) - 2**14).bitwise_right_shift_(15).bitwise_not_()


class _Dropped(torch.autograd.Function):
    """x where it is kept, times a factor, and 0 elsewhere.

    kept is True there or, on a CPU, -1, all of whose bits are set: the bits of x, too, are kept in quick passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.factor = factor
        return _masked(x, kept, factor)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _masked(grad_outputs[0], kept, ctx.factor), None, None


def _masked(x: Tensor, kept: Tensor, factor: float) -> Tensor:
    if kept.dtype == torch.bool:
        return torch.where(kept, x, 0.0).mul_(factor)
    out, whole = torch.empty(x.shape, dtype=x.dtype, device=x.device), _WHOLE[x.itemsize]
    pieces = (t.view(-1).split(_PASS) for t in (x.contiguous(), kept, out))
    for given, bits, found in zip(*pieces, strict=True):
        torch.bitwise_and(given.view(whole), bits.to(whole), out=found.view(whole))
        found.mul_(factor)
    return out


@cache
def _outside_graphs() -> Callable[[_RowMasks, Tensor, float, bool], Tensor]:
    """`_RowMasks.drop` as the compiler should leave it: a decorator would import the compiler with this module."""
    return torch.compiler.disable(_RowMasks.drop)


_RATES = ("dropout", "attention_dropout", "embedding_dropout", "output_dropout")


def switch_off_dropout(model: nn.Module) -> None:
    """No dropout in training either, adapters included: a policy is then its reference at the start."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _RATES:  # of modules that call the function
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
