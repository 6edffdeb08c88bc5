"""Perplexity with a strided window, per token, per word and per byte, for every causal model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.models.decoding.generation import CausalLM
from modern_llm.models.fused_loss import IGNORE_INDEX, token_nll
from modern_llm.processes import dealt, summed, world


@dataclass(frozen=True)
class Perplexity:
    """What a model makes of a text.

    Attributes:
        loss: nats per token.
        token_perplexity: exp(loss); comparable under the same tokenizer only.
        word_perplexity: exp(nats per word); comparable across tokenizers. None for a part of a split.
        byte_perplexity: exp(nats per byte); likewise.
        bits_per_byte: log2 of the byte perplexity.
        tokens_scored: tokens of the text; separators between documents are context, and are not scored.
        context, stride: of the window, in tokens.
    """

    loss: float
    token_perplexity: float
    word_perplexity: float | None
    byte_perplexity: float | None
    bits_per_byte: float | None
    tokens_scored: int
    context: int
    stride: int

    def metrics(self, prefix: str) -> dict[str, float]:
        """As flat numbers, `<prefix>_loss` and so on."""
        values = {k: v for k, v in asdict(self).items() if v is not None and k not in ("context", "stride")}
        return {f"{prefix}_{name}": value for name, value in values.items()}


def windows(length: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, first): inputs ids[start:end], of whose targets ids[start+1:end+1] those from index `first` on are
    scored, so that each of the `length - 1` targets is scored in exactly one window."""
    targets = length - 1
    scored = start = 0
    while scored < targets:
        end = min(start + context, targets)
        yield start, end, scored - start
        scored, start = end, start + stride


@torch.no_grad()
def token_losses(
    model: CausalLM,
    corpus: TokenCorpus,
    *,
    context: int,
    stride: int,
    batch_size: int,
    device: torch.device,
    max_tokens: int | None = None,
    document_ids: bool = False,
    part: tuple[int, int] = (0, 1),
) -> Iterator[Tensor]:
    """Loss of every scored token of a split, in nats, in the order of the text: a vector on the CPU for each batch.

    Args:
        model, corpus, context, stride, batch_size, device, max_tokens, document_ids: as in `perplexity`.
        part: (k, n): only the k-th of every n batches.

    Raises:
        ValueError: a stride that would skip tokens.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride={stride}: must lie between 1 and context={context}, or tokens are skipped.")
    ids = corpus.ids if max_tokens is None else corpus.ids[: max_tokens + 1]
    for batch, is_own in dealt(_batches(windows(len(ids), context, stride), batch_size), *part):
        rows = torch.from_numpy(np.stack([ids[start : end + 1] for start, end, _ in batch]).astype(np.int64))
        inputs, labels = rows[:, :-1].to(device), rows[:, 1:].clone()
        for row, (_, _, first) in enumerate(batch):
            labels[row, :first] = IGNORE_INDEX
        labels[labels == corpus.eos_id] = IGNORE_INDEX
        documents = (inputs == corpus.eos_id).cumsum(1) if document_ids else None
        output = model.hidden_states(inputs, document_ids=documents)
        losses = token_nll(output.hidden, model.output_head, labels.to(device)).cpu()
        if is_own:
            yield losses[labels != IGNORE_INDEX].double()


def perplexity(
    model: CausalLM,
    corpus: TokenCorpus,
    *,
    context: int,
    stride: int,
    batch_size: int,
    device: torch.device,
    max_tokens: int | None = None,
    document_ids: bool = False,
) -> Perplexity:
    """Score a split, each of several processes its share.

    Args:
        model: anything that meets `CausalLM`, in evaluation mode.
        corpus: the split.
        context: tokens per window.
        stride: tokens between windows, at most `context`.
        batch_size: windows per forward pass.
        device: of the model.
        max_tokens: score only the beginning; per-word and per-byte figures are then None.
        document_ids: attention stays inside documents, as in training with document masking.

    Raises:
        ValueError: a stride that would skip tokens; no token to score.
    """
    losses = token_losses(
        model,
        corpus,
        context=context,
        stride=stride,
        batch_size=batch_size,
        device=device,
        max_tokens=max_tokens,
        document_ids=document_ids,
        part=(world().rank, world().count),
    )
    return summarise(losses, corpus, context, stride, max_tokens)


def summarise(
    losses: Iterable[Tensor], corpus: TokenCorpus, context: int, stride: int, max_tokens: int | None = None
) -> Perplexity:
    """The figures of the losses that `token_losses` gave, or of others of the same tokens; of several processes, of
    those that all have.

    Raises:
        ValueError: there are none.
    """
    nats, scored = 0.0, 0
    for part in losses:
        nats, scored = nats + float(part.sum()), scored + len(part)
    nats, scored = summed(torch.tensor([nats, scored], dtype=torch.float64)).tolist()
    if scored == 0:
        raise ValueError("the split has no token to score. Use more text.")
    whole = max_tokens is None or max_tokens + 1 >= len(corpus.ids)
    loss, per_byte = nats / scored, nats / corpus.counts.bytes
    return Perplexity(
        loss=loss,
        token_perplexity=_exp(loss),
        word_perplexity=_exp(nats / corpus.counts.words) if whole else None,
        byte_perplexity=_exp(per_byte) if whole else None,
        bits_per_byte=per_byte / math.log(2) if whole else None,
        tokens_scored=int(scored),
        context=context,
        stride=stride,
    )


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf


def _batches(spans: Iterator[tuple[int, int, int]], size: int) -> Iterator[list[tuple[int, int, int]]]:
    """Windows of one length together; the last ones of a text are shorter."""
    batch: list[tuple[int, int, int]] = []
    for span in spans:
        if batch and (len(batch) == size or span[1] - span[0] != batch[0][1] - batch[0][0]):
            yield batch
            batch = []
        batch.append(span)
    if batch:
        yield batch
