"""Compiled one-token steps: the same texts from one graph, whatever the length of the cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from parts import PARTS

from modern_llm.models import generate, stream_tokens
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.rope import NoRope, YarnRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.decoding import compiled
from modern_llm.models.decoding.continuous import generate_waiting
from modern_llm.models.decoding.generation import prefilled
from modern_llm.models.decoding.sampling import Sampling

YARN = YarnRope(factor=4.0, original_max_seq_len=16)
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa yarn": {"group_size": 2, "rope": YARN},
    "no positions": {"rope": NoRope()},
    "window": {"sliding_window": 7},
    "learnable sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=7, num_sinks=3), "rope": YARN},
    "logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=7)},
    "streaming sinks": {"use_attention_sinks": True, "sinks": StreamingSinks(window=5, num_sinks=2)},
    "short and long, two bases, capped": {"n_layers": 3, "layers": LayerPattern("SL", 4, "RB", 100.0),
                                          "attention_softcap": 1.5},
    "unet": PARTS["unet"],
    "gated": PARTS["gated"],
}  # fmt: skip
COMPILED = {"compile": True}


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.GraphModule]:
    """What is compiled, run by torch's eager operators: what is tested is the tracing, not the code generator."""
    found: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    step = torch.compile(compiled._step, backend=backend, fullgraph=True)
    monkeypatch.setattr(compiled, "compiled_step", lambda: step)
    return found


PADDED = ("plain", "window", "learnable sinks")


@pytest.mark.parametrize(("name", "padded"), [*((n, False) for n in MODELS), *((n, True) for n in PADDED)])
def test_one_graph_writes_the_same_texts(tiny, token_ids, graphs, name, padded) -> None:
    """Across the window, with and without padding, drawn: prompts of two lengths, on the same graph."""
    model = tiny(max_seq_len=64, **MODELS[name]).double()
    for length in (9, 4):
        ids, mask = token_ids(3, length), torch.ones(3, length).long()
        if padded:
            mask[0, :3] = mask[2, :1] = 0
        options: dict[str, Any] = {"max_new_tokens": 20, "seed": 3}
        drawn = {"temperature": 1.5, "repetition_penalty": 1.1}
        expected = generate(model, ids, mask, sampling=Sampling(**drawn), **options)
        assert generate(model, ids, mask, sampling=Sampling(**drawn, compile=True), **options) == expected
    assert len(graphs) == 1


def test_a_prompt_shorter_than_the_kept_tokens_and_one_behind_a_prefix(tiny, token_ids, graphs) -> None:
    model = tiny(max_seq_len=64, use_attention_sinks=True, sinks=StreamingSinks(window=5, num_sinks=4)).double()
    for ids in (token_ids(2, 1), token_ids(2, 3)):
        expected = generate(model, ids, max_new_tokens=20)
        assert generate(model, ids, max_new_tokens=20, sampling=Sampling(temperature=0.0, compile=True)) == expected
    model, prefix_ids = tiny(max_seq_len=64).double(), token_ids(1, 5)
    expected = generate(model, torch.cat([prefix_ids.expand(2, -1), ids], 1), max_new_tokens=9)
    got = generate(model, ids, max_new_tokens=9, prefix=prefilled(model, prefix_ids[0].tolist()),
                   sampling=Sampling(temperature=0.0, compile=True))  # fmt: skip
    assert got == expected


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", [{}, {"sliding_window": 5}], ids=["full", "window"])
@torch.no_grad()
def test_the_cache_knows_of_the_steps_afterwards(tiny, token_ids, graphs, settings, padded) -> None:
    """As a conversation goes on with it: what it holds gives the logits of a full pass."""
    model, ids, mask = tiny(max_seq_len=64, **settings).double(), token_ids(2, 6), torch.ones(2, 6).long()
    if padded:
        mask[0, :2] = 0
    cache = model.new_cache(2, 40)
    stream = stream_tokens(model, ids, mask, max_new_tokens=9, sampling=Sampling(temperature=0.0, compile=True),
                           cache=cache)  # fmt: skip
    new = torch.stack(list(stream), 1)
    assert cache.length == 6 + 8
    more = torch.cat([new[:, -1:], token_ids(2, 4, seed=7)], 1)
    got = model(more, cache=cache).logits
    for row in range(2):
        whole = torch.cat([ids[row][mask[row].bool()], new[row, :-1], more[row]])
        torch.testing.assert_close(got[row], model(whole[None]).logits[0, -5:])


@pytest.mark.parametrize("settings", [{"moe": MoEConfig(4, 2)}, PARTS["smear"], PARTS["state spaces"]])
def test_models_that_take_no_compiled_steps_are_refused(tiny, token_ids, settings) -> None:
    with pytest.raises(ValueError, match=r"sampling\.compile=true: ModernDecoderLM"):
        generate(tiny(**settings), token_ids(1, 4), max_new_tokens=3, sampling=Sampling(compile=True))
    with pytest.raises(ValueError, match=r"sampling\.compile=True: takes one token"):
        Sampling(compile=True, lookup=3)
    with pytest.raises(ValueError, match="needs an end"):
        next(stream_tokens(tiny(), token_ids(1, 4), sampling=Sampling(compile=True)))


def test_batches_of_compiled_steps_follow_each_other(tiny, graphs) -> None:
    """Texts to three prompts, two of them in a batch that no other text enters."""
    model = tiny(max_seq_len=64).double()
    options: dict[str, Any] = {"owners": [0, 0, 1, 2, 2, 2], "max_new_tokens": 6, "eos_id": 60, "seeds": range(6)}
    plain, compiled = (
        generate_waiting(model, [[3, 9, 4], [5], [8, 30]], 3, sampling=Sampling(temperature=2.0, compile=on), **options)
        for on in (False, True)
    )
    assert compiled == plain
    assert len(graphs) == 1
