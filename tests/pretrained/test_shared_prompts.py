"""Answers that share their prompt in models of transformers: those of whole passes of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from foreign_models import SOURCES, foreign_config
from made_models import Letters

from modern_llm.models.decoding.drawing import draw
from modern_llm.models.decoding.generation import generate, prefilled
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.causal import HuggingFaceCausalLM

SHARING = ["llama-mqa", "mistral-full", "qwen3", "smollm3", "gpt2"]
KEEPING = ["mistral-window", "qwen2-some-windows", "gemma2", "gpt-oss"]
PROMPTS = [[3, 9, 4, 11, 2], [5, 1], [8, 8, 30, 12, 6, 1, 2]]


@torch.no_grad()
def made(name: str) -> HuggingFaceCausalLM:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(foreign_config(*SOURCES[name]))
    for parameter in theirs.parameters():
        if parameter.dim() > 1:
            parameter.mul_(8)
    return HuggingFaceCausalLM(theirs).eval()


@pytest.fixture(autouse=True)
def _shared_however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modern_llm.models.kernels._FEWEST_SHARED", 0)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("name", [*SHARING, *KEEPING])
def test_answers_are_those_of_whole_passes_of_transformers(name: str, rows: int | None) -> None:
    model = made(name)
    sampling = Sampling(temperature=3.0)
    drawn = draw(model, Letters(), PROMPTS, 4, rows, max_new_tokens=12, sampling=sampling, seeds=list(range(12)))
    seed, ended = 0, 0
    for prompt, answers in zip(PROMPTS, drawn, strict=True):
        for answer in answers:
            (alone,) = generate(model, torch.tensor([prompt]), max_new_tokens=12, sampling=sampling, seed=[seed],
                                eos_id=7)  # fmt: skip
            assert answer.ids == alone + ([7] if answer.ended else [])
            with torch.no_grad():
                logits = model.model(torch.tensor([[*prompt, *answer.ids]])).logits[0, len(prompt) - 1 : -1]
            chance = (logits.float() / 3.0).log_softmax(-1)
            known = chance[range(len(answer.ids)), answer.ids]
            torch.testing.assert_close(torch.tensor(answer.log_probs), known, rtol=0, atol=1e-5)
            entropy = torch.distributions.Categorical(logits=chance).entropy()
            torch.testing.assert_close(torch.tensor(answer.entropies), entropy, rtol=0, atol=1e-5)
            seed, ended = seed + 1, ended + answer.ended
    assert 0 < ended < 12  # rows left, and others went on
    assert len({answer.text for answers in drawn for answer in answers}) > 6


@pytest.mark.parametrize("name", [*SHARING, *KEEPING])
def test_a_cache_is_shared_where_all_layers_see_all_of_it(name: str) -> None:
    model = made(name)
    with torch.no_grad():
        prefix = prefilled(model, PROMPTS[0][:-1])
    cache: Any = prefix.shared(3, 5)
    assert (cache.trunks is not None) is (name in SHARING)
    expected = generate(model, torch.tensor([PROMPTS[0]] * 3), max_new_tokens=5, sampling=Sampling(), seed=4)
    got = generate(model, torch.tensor([PROMPTS[0][-1:]] * 3), max_new_tokens=5, sampling=Sampling(), seed=4,
                   prefix=prefix)  # fmt: skip
    assert got == expected


def test_a_prompt_is_held_once() -> None:
    model = made("llama-mqa")
    cache = model.new_cache(2, 40)
    with torch.no_grad():
        model.hidden_states(torch.arange(60).view(2, 30), cache=cache)
        assert cache.share([0] * 8 + [1] * 8)
        model.hidden_states(torch.arange(16)[:, None], cache=cache)
    assert cache.length == 31
    assert cache.trunks is not None
    held = [t for layer in cache.layers for t in (layer.keys, layer.values) if t is not None]
    held += [*cache.trunks._keys.values(), *cache.trunks._values.values()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    a_token = 2 * 2 * 1 * 8 * 4  # keys and values, layers, heads, width, bytes
    assert sum(storages.values()) == (2 * 30 + 16 * 10) * a_token
