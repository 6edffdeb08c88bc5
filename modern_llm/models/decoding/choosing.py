"""The choice of the next token from its logits."""

from __future__ import annotations

import torch
from torch import Tensor

from modern_llm.models.decoding.sampling import Sampling


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


def choose(logits: Tensor, sampling: Sampling, generators: list[torch.Generator]) -> Tensor:
    """One id per row of logits (B, V): the largest; or the first whose cumulated probability exceeds a uniform number,
    which each row draws from its own generator, so that a text does not depend on its neighbours in the batch."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    below = logits.softmax(dim=-1).cumsum(dim=-1)
    drawn = [torch.rand(1, generator=g, device=g.device, dtype=below.dtype) for g in generators]
    total, uniform = below[:, -1:], torch.stack(drawn)  # (B, 1)
    # A product that is rounded up to the total would lie above every id.
    place = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(below, place, right=True)[:, 0]
