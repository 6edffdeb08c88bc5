"""What a model answers: the class of a text, the likelihood of given answers, or an answer of its own. For decoders,
the beginning that all prompts share is computed once; texts of like length are computed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from modern_llm.data.batches import ClassificationBatch, Collate, Encoded, Sized, by_length, padded
from modern_llm.evaluation.likelihood import BranchingCausalLM, Progress, log_likelihoods, shared_length, silent
from modern_llm.models.decoding.continuous import takes_waiting
from modern_llm.models.decoding.generation import (
    CausalLM,
    Continuation,
    Prefix,
    TextCodec,
    continue_ids,
    prefilled,
)
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.models.fused_loss import IGNORE_INDEX, token_nll
from modern_llm.objectives.base import Batch, Objective, on_device
from modern_llm.objectives.classification import TextClassifier
from modern_llm.pretrained.seq2seq import EncodedSource, HuggingFaceSeq2Seq
from modern_llm.processes import dealt, gathered, summed, world


def _prefill(model: CausalLM, prompts: Sequence[list[int]]) -> tuple[Prefix | None, int]:
    """What all prompts share, or None where that is nothing, and how many ids that is."""
    shared = shared_length(prompts)
    return (prefilled(model, prompts[0][:shared]) if shared else None), shared


def _sized_batches(lengths: Sequence[int], batch_size: int, progress: Progress) -> Iterator[list[int]]:
    items = [Encoded(i, [0] * length, []) for i, length in enumerate(lengths)]
    done = 0
    for places in by_length(items, batch_size):
        yield places
        done += len(places)
        progress(done, len(items))


@torch.no_grad()
def rank_answers(
    model: BranchingCausalLM | HuggingFaceSeq2Seq,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    batch_size: int,
    progress: Progress = silent,
) -> np.ndarray:
    """Log-likelihood of each answer behind its prompt, in nats, summed over its tokens.

    Args:
        model: in evaluation mode.
        prompts: ids of each, not empty.
        answers: ids of the answers of every prompt.
        batch_size: rows per forward pass.

    Returns:
        (N, C) float64, C the largest number of answers; -inf where a prompt has fewer.
    """
    if isinstance(model, HuggingFaceSeq2Seq):
        return _rank_with_encoder(model, prompts, answers, batch_size, progress)
    requests = [(prompt, answer) for prompt, options in zip(prompts, answers, strict=True) for answer in options]
    owners = np.repeat(np.arange(len(prompts)), [len(options) for options in answers])
    scores = _no_scores(answers)
    places = np.concatenate([np.arange(len(options)) for options in answers])
    scores[owners, places] = log_likelihoods(model, requests, batch_size, progress).sums
    return scores


def _no_scores(answers: Sequence[Sequence[Sequence[int]]]) -> np.ndarray:
    """(N, C) -inf everywhere; C is the largest number of answers."""
    return np.full((len(answers), max(map(len, answers))), -np.inf)


def _rank_with_encoder(
    model: HuggingFaceSeq2Seq,
    prompts: Sequence[list[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    batch_size: int,
    progress: Progress,
) -> np.ndarray:
    """As `rank_answers`; each source is encoded once for all its answers."""
    scores = _no_scores(answers)
    device = model.output_head.weight.device
    for places in _sized_batches(list(map(len, prompts)), batch_size, progress):
        source = padded([prompts[i] for i in places], 0).to(device)
        mask = padded([[1] * len(prompts[i]) for i in places], 0).to(device)
        encoded = model.encode(source, mask)
        for c in range(max(len(answers[i]) for i in places)):
            # A prompt with fewer answers than the others reads its last one again.
            options = [list(answers[i][min(c, len(answers[i]) - 1)]) for i in places]
            inputs = padded([[model.start_id, *option[:-1]] for option in options], 0).to(device)
            labels = padded(options, IGNORE_INDEX).to(device)
            hidden = model.decoder_states(EncodedSource(*encoded), inputs)
            found = -token_nll(hidden, model.output_head, labels).sum(1).cpu().numpy()
            known = [row for row, i in enumerate(places) if c < len(answers[i])]
            scores[[places[row] for row in known], c] = found[known]
    return scores


@torch.no_grad()
def write_answers(
    model: CausalLM | HuggingFaceSeq2Seq,
    tokenizer: TextCodec,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    stop_in_blanks: bool = False,
    batch_size: int,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    progress: Progress = silent,
) -> list[Continuation]:
    """An answer of the model's own to each prompt.

    Args:
        model: in evaluation mode.
        tokenizer: of the model.
        prompts: ids of each, not empty.
        max_new_tokens, stop, stop_in_blanks, sampling, seed: as in `continue_ids`.
        batch_size: answers that are written side by side. Where the model's cache `takes_waiting`, waiting prompts take
            the place of answers that have ended; else batches of like lengths follow each other.
    """
    written_how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "stop": stop,
                                   "stop_in_blanks": stop_in_blanks}  # fmt: skip
    answers: list[Continuation] = [Continuation("", False)] * len(prompts)
    prefix, shared = None, 0
    longest = max(map(len, prompts), default=0) + max_new_tokens
    # Caches that evict take no padding behind what all prompts share.
    if not isinstance(model, HuggingFaceSeq2Seq) and prompts and takes_waiting(model, longest):
        prefix, shared = _prefill(model, prompts)
        if 1 < batch_size < len(prompts) and not sampling.compile:
            starts = [list(prompt[shared:]) for prompt in prompts]
            return continue_ids(model, tokenizer, starts, seed=seed, prefix=prefix, rows=batch_size,
                                progress=progress, **written_how)  # fmt: skip
    for places in _sized_batches([len(p) - shared for p in prompts], batch_size, progress):
        starts = [list(prompts[i][shared:]) for i in places]
        decoder: CausalLM
        if not isinstance(model, HuggingFaceSeq2Seq):
            decoder = model
        else:
            source = padded(starts, 0).to(model.output_head.weight.device)
            mask = padded([[1] * len(row) for row in starts], 0).to(source.device)
            decoder, starts = model.decoder(model.encode(source, mask)), [[model.start_id]] * len(places)
        seeds = [seed + place for place in places]
        written = continue_ids(decoder, tokenizer, starts, seed=seeds, prefix=prefix, **written_how)
        for place, continuation in zip(places, written, strict=True):
            answers[place] = continuation
    return answers


@torch.no_grad()
def classify(
    model: TextClassifier,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device,
    progress: Progress = silent,
) -> np.ndarray:
    """(N, C) log-probabilities of the classes of each text; arguments as in `text_logits`."""
    return text_logits(model, texts, batch_size, device, progress).log_softmax(-1).double().numpy()


@torch.no_grad()
def text_logits(
    model: TextClassifier,
    texts: Sequence[Sequence[int]],
    batch_size: int,
    device: torch.device,
    progress: Progress = silent,
) -> torch.Tensor:
    """(N, C) logits in fp32, on the CPU, of the classes of each text, given as ids."""
    scores = torch.zeros(len(texts), len(model.labels))
    collate = ClassificationBatch(0)
    for places in _sized_batches(list(map(len, texts)), batch_size, progress):
        batch = collate([Encoded(i, list(texts[i]), []) for i in places])
        scores[places] = model.logits(batch["input_ids"].to(device), batch["last"].to(device)).float().cpu()
    return scores


@torch.no_grad()
def mean_loss(
    model: torch.nn.Module,
    objective: Objective,
    items: Sequence[Sized],
    collate: Collate,
    batch_size: int,
    device: torch.device,
) -> dict[str, float]:
    """What the objective gives over all items: `loss` and its further metrics, means over targets or rows. Each of
    several processes computes its share, and surveys all of them where the objective asks for that."""
    by_target: dict[str, float] = {}
    by_row: dict[str, float] = {}
    targets = 0
    rows = 0
    known: Batch = {}
    if objective.surveys_evaluation:
        every = by_length(items, batch_size)
        known = objective.survey(model, (on_device(collate([items[i] for i in places]), device) for places in every))
    for places, is_own in dealt(by_length(items, batch_size), world().rank, world().count):
        batch: Batch = collate([items[i] for i in places])
        output = objective(model, on_device(batch, device) | known)
        if not is_own:
            continue
        targets, rows = targets + objective.count(batch), rows + len(places)
        of_targets, of_rows = {"loss": output.loss_sum, **output.metrics}, dict(output.row_metrics)
        if output.row_loss_sum is not None:
            of_rows["loss"] = output.row_loss_sum
        values = torch.stack([*of_targets.values(), *of_rows.values()]).tolist()  # the device is read once
        _add(by_target, dict(zip(of_targets, values, strict=False)))
        _add(by_row, dict(zip(of_rows, values[len(of_targets) :], strict=True)))
    if world().count > 1:
        by_target, by_row = _over_processes(by_target), _over_processes(by_row)
        targets, rows = summed(torch.tensor([targets, rows])).tolist()
    means: dict[str, float] = {}
    _add(means, by_target, max(targets, 1))
    _add(means, by_row, max(rows, 1))
    return means


def _over_processes(sums: dict[str, float]) -> dict[str, float]:
    """Sums of all processes, of which some may have had no batch."""
    names = sorted({name for part in gathered(list(sums)) for name in part})
    found = summed(torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64))
    return dict(zip(names, found.tolist(), strict=True))


def _add(sums: dict[str, float], values: Mapping[str, float], divisor: int = 1) -> None:
    for name, value in values.items():
        sums[name] = sums.get(name, 0.0) + value / divisor
