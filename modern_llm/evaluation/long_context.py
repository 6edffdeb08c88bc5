"""Loss by position of a text far longer than a model was trained for, under different cache policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.evaluation.perplexity import windows
from modern_llm.models.attention.rotary import Rotary
from modern_llm.models.attention.sinks import StreamingSinks
from modern_llm.models.config import ModernLLMConfig
from modern_llm.models.decoding.generation import CausalLM
from modern_llm.models.fused_loss import IGNORE_INDEX, token_nll
from modern_llm.models.transformer import ModernDecoderLM

Policy = Literal["full", "window", "streaming", "own", "recomputed"]


def policy_config(config: ModernLLMConfig, policy: Policy, window: int, num_sinks: int) -> ModernLLMConfig:
    """A decoder's configuration under a cache policy; both bounded ones hold `window` tokens.

    Args:
        config: of a decoder without learned sinks, unless the policy is `own`.
        policy: `full` keeps every token, `window` the last ones, `streaming` the first `num_sinks` and the last ones
            (Xiao et al. 2023, arXiv 2309.17453, section 3.2), `own` what the model was trained with.
        window: tokens held.
        num_sinks: of these, first tokens.

    Raises:
        ValueError: the model has learned sinks, which the policy would take away.
    """
    if policy == "own":
        return config
    learned = config.use_attention_sinks and not isinstance(config.sinks, StreamingSinks)
    if learned:
        raise ValueError(
            f"policy={policy!r}: the model has learned {type(config.sinks).__name__}, without which it is another "
            "model. Use policy=own."
        )
    plain = replace(config, use_attention_sinks=False, sliding_window=None)
    if policy == "window":
        return replace(plain, sliding_window=window)
    if policy == "streaming":
        return replace(plain, use_attention_sinks=True, sinks=StreamingSinks(window - num_sinks, num_sinks))
    return plain


def under_policy(model: ModernDecoderLM, policy: Policy, window: int, num_sinks: int) -> ModernDecoderLM:
    """The same weights, in the same memory, under a cache policy. Arguments as in `policy_config`."""
    config = policy_config(model.config, policy, window, num_sinks)
    if config == model.config:
        return model
    with torch.device("meta"):
        other = ModernDecoderLM(config)
    other.load_state_dict(model.state_dict(), strict=True, assign=True)
    if config.tie_embeddings:
        other.head.weight = other.embedding.weight
    other.rotary = Rotary.of_model(config).to(model.output_head.weight.device)
    return other.eval()


@torch.no_grad()
def streamed_nll(model: CausalLM, ids: Tensor, chunk: int, device: torch.device) -> Tensor:
    """Loss of every token of texts that are read once, from the first to the last, through the model's cache.

    A chunk is read at a time; inside it each token sees what it would see if it were read alone, so that the length of
    a chunk decides the time alone.

    Args:
        model: in evaluation mode.
        ids: (B, N + 1).
        chunk: tokens read at a time.

    Returns:
        (B, N) nats, of the tokens from the second on.
    """
    length = ids.shape[1] - 1
    cache = model.new_cache(len(ids), length)
    losses = []
    for start in range(0, length, chunk):
        stop = min(start + chunk, length)
        hidden = model.hidden_states(ids[:, start:stop].to(device), cache=cache).hidden
        losses.append(token_nll(hidden, model.output_head, ids[:, start + 1 : stop + 1].to(device)).cpu())
    return torch.cat(losses, dim=1)


@torch.no_grad()
def recomputed_nll(model: CausalLM, ids: Tensor, context: int, device: torch.device) -> Tensor:
    """Loss of every token without a cache: windows that overlap by half, each read anew, so that a token sees
    between half of `context` and all of it. What a cache is measured against, at a far higher cost.

    Args:
        ids: (B, N + 1).
        context: tokens per window.

    Returns:
        (B, N) nats, of the tokens from the second on.
    """
    losses = torch.zeros(len(ids), ids.shape[1] - 1)
    for start, end, first in windows(ids.shape[1], context, max(context // 2, 1)):
        hidden = model.hidden_states(ids[:, start:end].to(device)).hidden[:, first:]
        targets = ids[:, start + first + 1 : end + 1]
        losses[:, start + first : end] = token_nll(hidden, model.output_head, targets.to(device)).float().cpu()
    return losses


def long_texts(corpus: TokenCorpus, length: int, texts: int, start_id: int) -> Tensor:
    """(B, length + 1) ids: up to `texts` pieces of a corpus, far from each other, each behind `start_id`.

    Raises:
        ValueError: the corpus is shorter than one.
    """
    there = len(corpus.ids) // length
    if there < 1:
        raise ValueError(
            f"the text has {len(corpus.ids):,} tokens, and {length:,} are to be read. Use task.split=train, another "
            "text, or fewer task.factors."
        )
    count = min(texts, there)
    places = [number * there // count * length for number in range(count)]
    rows = np.stack([np.asarray(corpus.ids[place : place + length], dtype=np.int64) for place in places])
    return torch.cat([torch.full((count, 1), start_id), torch.from_numpy(rows)], dim=1)


class LossByPosition:
    """Losses of texts, of which separators are not counted.

    Args:
        nll: (B, N) nats.
        ids: (B, N + 1), what was read.
        separator: id that stands between documents.
    """

    def __init__(self, nll: Tensor, ids: Tensor, separator: int) -> None:
        self.nll = nll.double()
        self.counted = (ids[:, 1:] != separator) & (ids[:, 1:] != IGNORE_INDEX)

    def mean(self, start: int, stop: int) -> float:
        """Nats per token of the positions start..stop-1."""
        part, counted = self.nll[:, start:stop], self.counted[:, start:stop]
        return float(part[counted].mean())

    def block_differences(self, other: LossByPosition, start: int, stop: int, block: int = 128) -> list[float]:
        """How much more a token costs here than there, in the mean of each block of neighbours; neighbouring tokens are
        alike, so blocks and not tokens are what an interval may count."""
        gaps = ((self.nll - other.nll) * self.counted)[:, start:stop].split(block, dim=1)
        counts = self.counted[:, start:stop].split(block, dim=1)
        found = [(gap.sum(1) / count.sum(1).clamp(min=1)).tolist() for gap, count in zip(gaps, counts, strict=True)]
        return [value for row in found for value in row]


def fine_edges(length: int, first: int = 16, per_octave: int = 3) -> list[int]:
    """Borders of buckets of positions that grow with the position: 0, first, … length."""
    edges, place = [0], float(first)
    while round(place) < length:
        edges.append(round(place))
        place *= 2 ** (1 / per_octave)
    return [*edges, length]


def curve(losses: LossByPosition, edges: Sequence[int]) -> list[dict[str, Any]]:
    """Mean loss of each bucket, as rows."""
    return [{"from": start, "to": stop, "loss": losses.mean(start, stop)} for start, stop in pairwise(edges)]
