"""Likelihoods that share what texts begin with, against one plain forward pass for each text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from modern_llm.evaluation.likelihood import _batches, _grouped, log_likelihoods
from modern_llm.models.config import GQAConfig, ModernLLMConfig
from modern_llm.models.transformer import ModernDecoderLM

Load = Callable[..., Any]
Requests = list[tuple[list[int], list[int]]]


def one_by_one(model: Any, requests: Requests) -> tuple[list[float], list[bool]]:
    sums, greedy = [], []
    for context, continuation in requests:
        hidden = model.hidden_states(torch.tensor([[*context, *continuation]])).hidden[0, len(context) - 1 : -1]
        chance = model.output_head.logits(hidden).log_softmax(-1)
        sums.append(chance[range(len(continuation)), continuation].sum().item())
        greedy.append(chance.argmax(-1).tolist() == list(continuation))
    return sums, greedy


def drawn(seed: int) -> Requests:
    """Questions with answers of several lengths, sentences that begin alike, equal texts, and lonely ones."""
    random = np.random.default_rng(seed)

    def ids(count: int) -> list[int]:
        return random.integers(1, 200, count).tolist()

    question, start = ids(40), ids(3)
    requests = [(question, ids(n)) for n in (1, 1, 4, 9)]
    requests += [([0], [*start, *ids(n)]) for n in (1, 2, 2, 5, 8, 11)]
    requests += [([0], [*requests[4][1], 7]), requests[0], (ids(90), ids(30)), ([0], ids(1)), ([0], ids(1))]
    return requests


@pytest.mark.parametrize("kind", ["own", "gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_every_request_as_alone(load: Load, kind: str, batch_size: int) -> None:
    model = load(kind).model
    requests = drawn(1)
    sums, _ = one_by_one(model, requests)
    with torch.no_grad():  # one that is greedy by construction
        context = [5, 6, 7]
        best = model.output_head.logits(model.hidden_states(torch.tensor([context])).hidden[0, -1]).argmax().item()
    requests, sums = [*requests, (context, [best])], [*sums, one_by_one(model, [(context, [best])])[0][0]]
    told: list[tuple[int, int]] = []
    found = log_likelihoods(model, requests, batch_size, lambda done, of: told.append((done, of)))
    assert found.sums == pytest.approx(sums, abs=2e-4)
    assert found.greedy.tolist() == one_by_one(model, requests)[1]
    assert found.greedy[-1]
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("answers", [1, 3])
def test_contexts_that_begin_alike_for_long(load: Load, answers: int) -> None:
    """The beginning is kept in a cache here, and the rest of each text has a row to itself."""
    model = load("own").model
    random = np.random.default_rng(3)
    start = random.integers(1, 200, 120).tolist()
    requests = [
        ([*start, *random.integers(1, 200, n).tolist()], random.integers(1, 200, answers).tolist())
        for n in (2, 9, 9, 4, 1)
    ]
    sums, greedy = one_by_one(model, requests)
    found = log_likelihoods(model, requests, batch_size=2)
    assert found.sums == pytest.approx(sums, abs=2e-4)
    assert found.greedy.tolist() == greedy


def test_a_window_and_parts_that_look_back() -> None:
    """Positions and predecessors of a branch are those of its own text, whatever stands beside it in the row."""
    from modern_llm.models.embedding.smear import Smear

    torch.manual_seed(0)
    config = ModernLLMConfig(vocab_size=201, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, gqa=GQAConfig(2))
    for changed in (replace(config, sliding_window=6), replace(config, embedding={"smear": Smear()})):
        model = ModernDecoderLM(changed).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
        sums, _ = one_by_one(model, drawn(2))
        assert log_likelihoods(model, drawn(2), 4).sums == pytest.approx(sums, abs=3e-4)


def test_an_empty_continuation_is_certain(load: Load) -> None:
    found = log_likelihoods(load("own").model, [([1, 2], []), ([1, 2], [3])], 4)
    assert found.sums[0] == 0
    assert found.greedy[0]
    assert found.sums[1] < 0
    assert len(log_likelihoods(load("own").model, [], 4).sums) == 0


def test_groups_hold_every_text_once_and_save_what_they_can() -> None:
    texts = sorted({(1, *np.random.default_rng(n).integers(0, 3, 8).tolist()) for n in range(300)})
    groups, _ = _grouped(texts, 576)
    covered = sorted(i for group in groups for i in range(*group.texts))
    assert covered == list(range(len(texts)))
    for group in groups:
        members = texts[slice(*group.texts)]
        assert len({text[: group.trunk] for text in members}) == 1
        assert group.size == group.trunk + sum(len(text) - group.trunk for text in members)
    nodes = len({text[:n] for text in texts for n in range(1, 10)})  # what a whole tree would compute
    assert nodes <= sum(group.size for group in groups) < 0.7 * sum(map(len, texts))


@pytest.mark.parametrize("shared", [True, False])
def test_rows_hold_every_group_once_and_none_too_many(shared: bool) -> None:
    sizes = np.random.default_rng(0).integers(1, 90, 200).tolist()
    seen = []
    for rows, length in _batches(sizes, 4, shared):
        assert len(rows) <= 4
        assert all(sum(sizes[i] for i in row) <= length for row in rows)
        assert shared or all(len(row) == 1 for row in rows)
        seen += [i for row in rows for i in row]
    assert sorted(seen) == list(range(200))
