"""Decoding waits for the device once in several tokens, and writes the same texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_models import Letters
from torch import Tensor
from torch.overrides import TorchFunctionMode

from modern_llm.models import generate
from modern_llm.models.attention.sinks import LearnableSinks, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.decoding import continuous, endings
from modern_llm.models.decoding.drawing import draw
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.models.kernels import Device, tokens_per_read

READS = {Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.cpu,
         Tensor.numpy, Tensor.nonzero, Tensor.unique, torch.equal, torch.allclose}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "experts": {"moe": MoEConfig(4, 2)},
    "window": {"sliding_window": 6},
    "learnable sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=6, num_sinks=2)},
    "streaming sinks": {"use_attention_sinks": True, "sinks": StreamingSinks(window=6, num_sinks=2)},
}


class Reads(TorchFunctionMode):
    """How often the host asked for what a tensor holds."""

    count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READS
        return func(*args, **(kwargs or {}))


@pytest.fixture
def eight_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    for module in (endings, continuous):
        monkeypatch.setattr(module, "tokens_per_read", lambda device: tokens_per_read(Device("cuda")))


def _reads(model: Any, ids: Tensor, mask: Tensor | None, tokens: int, sampling: Sampling) -> int:
    with Reads() as reads:
        generate(model, ids, mask, max_new_tokens=tokens, sampling=sampling, eos_id=60)
    return reads.count


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.2, 0.9, 20, 0.9, 0.01)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_eight_tokens_are_read_at_once(tiny, token_ids, eight_at_once, name, padded, sampling) -> None:
    if padded and name == "streaming sinks":
        pytest.skip("refuses padding")
    model, ids, mask = tiny(max_seq_len=64, **MODELS[name]), token_ids(3, 9), torch.ones(3, 9).long()
    if padded:
        mask[0, :4] = 0
    short, long = (_reads(model, ids, mask, tokens, sampling) for tokens in (8, 32))
    if name == "experts":  # which reads how many tokens each expert gets, where there is no kernel for all of them
        experts = model.config.n_layers * (32 - 8)
        assert long - short <= 3 + experts
    else:
        assert long - short == 3


@pytest.mark.parametrize("lengths", [[3, 12, 5, 1, 2, 17], [8, 16, 9, 24, 7, 25]])
def test_texts_are_cut_where_they_end(tiny, token_ids, monkeypatch, eight_at_once, lengths) -> None:
    model, ids = tiny(max_seq_len=64).double(), token_ids(6, 5)
    options: dict[str, Any] = {"max_new_tokens": 25, "sampling": Sampling(temperature=2.0, repetition_penalty=1.1)}
    together = generate(model, ids, finished=lambda row, new: len(new) == lengths[row], **options)
    assert list(map(len, together)) == lengths
    monkeypatch.setattr(endings, "tokens_per_read", lambda device: 1)
    assert generate(model, ids, finished=lambda row, new: len(new) == lengths[row], **options) == together
    (eos,) = {together[3][0]}
    one_by_one = generate(model, ids, eos_id=eos, **options)
    monkeypatch.setattr(endings, "tokens_per_read", lambda device: 8)
    assert generate(model, ids, eos_id=eos, **options) == one_by_one


def test_drawn_answers_keep_their_log_probabilities(tiny, monkeypatch) -> None:
    model, found = tiny(max_seq_len=64).double(), list[Any]()
    for every in (1, 8):
        monkeypatch.setattr(continuous, "tokens_per_read", lambda device, every=every: every)
        found.append(draw(model, Letters(), [[3, 9, 4], [5, 1]], 12, max_new_tokens=20,
                          sampling=Sampling(temperature=3.0), seeds=range(24)))  # fmt: skip
    assert any(answer.ended for answers in found[0] for answer in answers)
    for ours, theirs in zip(*found, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert (one.ids, one.text, one.ended) == (other.ids, other.text, other.ended)
            assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
