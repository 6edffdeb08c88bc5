"""Speculative decoding by look-up: the same text in fewer passes, on every cache that can forget."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from parts import ALL, PARTS, UNLIKE_LAYERS
from transformers import AutoConfig, AutoModelForCausalLM

from modern_llm.models import generate, stream_tokens
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.decoding.generation import prefilled
from modern_llm.models.decoding.lookup import TextIndex
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.causal import HuggingFaceCausalLM

GREEDY = {"temperature": 0.0}
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": {"temperature": 0.3, "top_p": 0.9},
    "penalised": GREEDY | {"repetition_penalty": 1.1},
}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"group_size": 2},
    "experts": {"moe": MoEConfig(4, 2)},
    "window": {"sliding_window": 9},
    "window shorter than a proposal": {"sliding_window": 3},
    "learnable sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=9, num_sinks=3)},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=7)},
    "streaming sinks": {"use_attention_sinks": True, "sinks": StreamingSinks(window=9, num_sinks=2)},
    "short and long": {"n_layers": 3, "layers": LayerPattern("SL", 4)},
    **UNLIKE_LAYERS,
    **{name: PARTS[name] for name in ("smear", "canon of projections", "linear attention", "parallel blocks",
                                      "state spaces, every second block ours", "value_table")},
    "all parts": ALL | {"group_size": 2, "n_layers": 3, "sliding_window": 9},
}  # fmt: skip
HUGGING_FACE = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"sliding_window": 6, "num_key_value_heads": 2},
    "gpt_neox": {},
}


def _passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass from here on reads."""
    read: list[int] = []
    forward = model.hidden_states

    def counted(input_ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        read.append(input_ids.shape[1])
        return forward(input_ids, *args, **options)

    monkeypatch.setattr(model, "hidden_states", counted)
    return read


def _compare(model: Any, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch, sampling: dict[str, Any]) -> list[int]:
    options: dict[str, Any] = {"max_new_tokens": 40, "seed": 3}
    expected = generate(model, ids, sampling=Sampling(**sampling), **options)
    read = _passes(model, monkeypatch)
    assert generate(model, ids, sampling=Sampling(**sampling, lookup=6), **options) == expected
    return read


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("name", MODELS)
def test_the_text_stays_the_same_and_takes_fewer_passes(tiny, token_ids, monkeypatch, name, sampling) -> None:
    model = tiny(max_seq_len=64, **MODELS[name]).double()
    ids = torch.cat([token_ids(1, 11), token_ids(1, 6)], 1)  # its end stood at its beginning
    read = _compare(model, ids, monkeypatch, sampling)
    assert max(read[1:]) > 1, "nothing was proposed"
    if sampling == GREEDY:
        assert len(read) < 40, "nothing was accepted"


@pytest.mark.parametrize("family", HUGGING_FACE)
def test_models_of_transformers(loud, token_ids, monkeypatch, family) -> None:
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    config = AutoConfig.for_model(family, **sizes, num_attention_heads=4, max_position_embeddings=64,
                                  tie_word_embeddings=False, **HUGGING_FACE[family])  # fmt: skip
    model = HuggingFaceCausalLM(loud(AutoModelForCausalLM.from_config(config).double()))
    read = _compare(model, token_ids(1, 12), monkeypatch, GREEDY)
    assert len(read) < 40
    expected = model.model.generate(token_ids(1, 12), do_sample=False, max_new_tokens=40)[:, 12:]
    got = generate(model, token_ids(1, 12), max_new_tokens=40, sampling=Sampling(temperature=0.0, lookup=6))
    assert got == expected.tolist()


def test_what_stands_in_front_of_a_prompt_is_looked_up_too(tiny, token_ids, monkeypatch) -> None:
    """And counts for the repetition penalty."""
    model, ids = tiny(max_seq_len=64).double(), token_ids(1, 20)
    options: dict[str, Any] = {"max_new_tokens": 12, "sampling": Sampling(temperature=0.0, lookup=4)}
    whole = torch.cat([ids, ids[:, :6]], 1)
    expected = generate(model, whole, **options)
    prefix = prefilled(model, ids[0].tolist())
    assert generate(model, ids[:, :6], prefix=prefix, **options) == expected
    read = _passes(model, monkeypatch)
    options["sampling"] = Sampling(temperature=0.0, repetition_penalty=1.7)
    penalised = generate(model, whole, **options)
    assert generate(model, ids[:, :6], prefix=prefix, **options) == penalised != expected
    assert read[12:] == [6] + [1] * 11


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 5}, PARTS["smear"]], ids=["plain", "window", "smear"])
@pytest.mark.parametrize("taken", [1, 2, 3, 7, 8, 11])
def test_a_stream_that_is_closed_leaves_a_cache_to_go_on_with(tiny, token_ids, settings, taken) -> None:
    """Wherever it is closed: what the cache holds is text, and the rest of the text comes out as in one go."""
    model, ids = tiny(max_seq_len=96, **settings).double(), token_ids(1, 8)
    sampling = Sampling(temperature=0.0, lookup=5)
    (whole,) = generate(model, ids, max_new_tokens=30)
    cache = model.new_cache(1, 60)
    stream = stream_tokens(model, ids, max_new_tokens=30, sampling=sampling, cache=cache)
    first = [int(next(stream)) for _ in range(taken)]
    stream.close()
    assert first == whole[:taken]
    text = [*ids[0].tolist(), *first]
    assert cache.length < len(text)
    rest = stream_tokens(model, torch.tensor([text[cache.length :]]), max_new_tokens=30 - taken, sampling=sampling,
                         cache=cache, known=text[: cache.length])  # fmt: skip
    assert [int(token) for token in rest] == whole[taken:]


def test_an_endless_text(tiny, token_ids) -> None:
    model = tiny(use_attention_sinks=True, sinks=StreamingSinks(window=6, num_sinks=2)).double()
    stream = stream_tokens(model, token_ids(1, 4), sampling=Sampling(temperature=0.0, lookup=5))
    assert [int(next(stream)) for _ in range(60)] == generate(model, token_ids(1, 4), max_new_tokens=60)[0]


def test_what_is_observed_is_what_was_chosen(tiny, token_ids) -> None:
    """Log-probabilities of a drawn text, each of them once, as without look-up."""
    model, ids, seen = tiny(max_seq_len=64).double(), token_ids(1, 8), Counter[int]()
    for lookup in (0, 5):
        sampling, logits = Sampling(temperature=0.4, lookup=lookup), list[torch.Tensor]()
        stream = stream_tokens(model, ids, max_new_tokens=20, sampling=sampling, seed=4,
                               observe=lambda rows, chance, chosen, found=logits: found.append(chance))  # fmt: skip
        assert len(list(stream)) == len(logits) == 20
        seen[lookup] = len(logits)
        if lookup == 0:
            expected = torch.cat(logits)
    torch.testing.assert_close(torch.cat(logits), expected)


def test_proposals_are_what_stood_behind_the_longest_latest_match() -> None:
    index = TextIndex([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3])
    assert index.proposed(3) == [4, 9, 2]  # 1 2 3, not the later 2 3
    index.add(8)
    assert index.proposed(3) == []
    index.add(3)
    assert index.proposed(2) == [8, 3]  # the latest 3
    assert TextIndex([5, 7, 7]).proposed(4) == [7, 7, 7, 7]
    assert TextIndex([5, 1, 2, 1, 2, 1]).proposed(5) == [2, 1, 2, 1, 2]
    assert TextIndex([5]).proposed(2) == []


def test_a_cache_that_cannot_forget_is_refused(tiny, token_ids) -> None:
    class Poor:
        length = 0

    with pytest.raises(ValueError, match=r"sampling\.lookup=4: Poor.*Use 0"):
        list(stream_tokens(tiny(), token_ids(1, 4), max_new_tokens=3, sampling=Sampling(lookup=4), cache=Poor()))
    with pytest.raises(ValueError, match=r"sampling\.lookup=-1"):
        Sampling(lookup=-1)
