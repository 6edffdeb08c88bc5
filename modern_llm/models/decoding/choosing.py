"""The choice of the next token from its logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.decoding.uniform import UniformNumbers

_BLOCK = 256  # ids


def filter_logits(logits: Tensor, sampling: Sampling, occurred: Tensor | None = None) -> Tensor:
    """Apply penalty, temperature, top-k, top-p and min-p; what is dropped becomes -inf.

    Args:
        logits: (B, V) fp32.
        occurred: (B, V) True at tokens that the repetition penalty applies to.
    """
    if occurred is not None and sampling.repetition_penalty != 1:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(occurred, penalised, logits)
    if sampling.temperature not in (0, 1):
        logits = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        kth = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        chance = ordered.softmax(dim=-1)
        beyond = chance.cumsum(dim=-1) - chance >= sampling.top_p  # the token that crosses p stays
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), -torch.inf)
    if sampling.min_p > 0:
        chance = logits.softmax(dim=-1)
        logits = logits.masked_fill(chance < sampling.min_p * chance.amax(dim=-1, keepdim=True), -torch.inf)
    return logits


def choose(logits: Tensor, sampling: Sampling, numbers: UniformNumbers) -> Tensor:
    """One id per row of logits (B, V): the largest; or the first whose cumulated probability exceeds a uniform number,
    which is the next one of `numbers` for the row."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    chance = logits.softmax(dim=-1)
    # First a block of ids, then an id of it: a sum over all ids one by one takes a CPU ten times as long.
    missing = -chance.shape[-1] % _BLOCK
    blocks = (F.pad(chance, (0, missing)) if missing else chance).unflatten(-1, (-1, _BLOCK))  # (B, blocks, _BLOCK)
    below = blocks.sum(dim=-1).cumsum(dim=-1)
    block, rest = _place(below, numbers.next(chance.dtype) * below[:, -1:])
    inside = blocks.gather(1, block[..., None].expand(-1, -1, _BLOCK))[:, 0].cumsum(dim=-1)
    return (block * _BLOCK + _place(inside, rest)[0])[:, 0]


def _place(below: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Where running sums (B, n) first exceed a number (B, 1), and what is left of the number there, both (B, 1)."""
    last = below[:, -1:]
    # What is rounded up to the last sum would lie above every place.
    place = torch.minimum(place, torch.nextafter(last, torch.zeros_like(last)))
    found = torch.searchsorted(below, place, right=True)
    return found, place - below.gather(1, (found - 1).clamp(min=0)).masked_fill(found == 0, 0)
