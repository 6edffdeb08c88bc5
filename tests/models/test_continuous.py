"""Continuous batching: each text is the one that is written alone, and rows are hardly ever idle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_models import Letters
from parts import PARTS
from transformers import AutoConfig, AutoModelForCausalLM

from modern_llm.evaluation.answering import write_answers
from modern_llm.models import generate
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.sinks import LearnableSinks
from modern_llm.models.decoding import continuous
from modern_llm.models.decoding.continuous import generate_waiting, takes_waiting
from modern_llm.models.decoding.generation import prefilled
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.pretrained.causal import HuggingFaceCausalLM

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"group_size": 2},
    "learnable sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=60, num_sinks=3)},
    "some without positions": {"n_layers": 3, "layers": LayerPattern(rotary="RN")},
    **{name: PARTS[name] for name in ("smear", "canon of projections", "value_table", "learned positions")},
}
LENGTHS = [3, 11, 5, 1, 2, 12, 7, 12, 4, 9, 12, 1, 6]
PROMPT_LENGTHS = [5, 2, 9, 4, 1, 7, 3, 6, 12, 2, 5, 8, 3]
SAMPLINGS = {
    "greedy": GREEDY,
    "drawn": Sampling(temperature=1.3),
    "penalised": Sampling(temperature=1.1, repetition_penalty=1.3),
}


@pytest.fixture
def prompts(token_ids) -> list[list[int]]:
    return [token_ids(length, seed=length * 10 + i).tolist() for i, length in enumerate(PROMPT_LENGTHS)]


def _hugging_face(loud, family: str, **more: Any) -> HuggingFaceCausalLM:
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    config = AutoConfig.for_model(family, **sizes, num_attention_heads=4, max_position_embeddings=64,
                                  tie_word_embeddings=False, **more)  # fmt: skip
    return HuggingFaceCausalLM(loud(AutoModelForCausalLM.from_config(config).double()))


def _compare(model: Any, prompts: list[list[int]], rows: int, sampling: Sampling, shared: list[int]) -> None:
    prefix = prefilled(model, shared) if shared else None
    seeds = list(range(40, 40 + len(prompts)))
    got = generate_waiting(model, prompts, rows, max_new_tokens=12, sampling=sampling, eos_id=60, seeds=seeds,
                           prefix=prefix, finished=lambda text, ids: len(ids) == LENGTHS[text])  # fmt: skip
    for text, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
        whole = torch.tensor([[*shared, *prompt]])
        alone = generate(model, whole, max_new_tokens=LENGTHS[text], sampling=sampling, eos_id=60, seed=seed)
        assert got[text] == alone[0], text


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize(("name", "every"), [*((name, 1) for name in MODELS), ("plain", 8), ("smear", 8)])
def test_each_text_is_the_one_written_alone(tiny, prompts, monkeypatch, name, every, sampling) -> None:
    monkeypatch.setattr(continuous, "tokens_per_read", lambda device: every)
    model = tiny(max_seq_len=64, **MODELS[name]).double()
    for rows in (3, 8):
        _compare(model, prompts, rows, sampling, [])
    _compare(model, prompts, 4, sampling, [7, 3, 22, 22, 9])


FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "gpt_neox": {},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 6},
}


@pytest.mark.parametrize(("family", "more"), FAMILIES.items(), ids=FAMILIES)
def test_models_of_transformers(loud, prompts, family, more) -> None:
    model = _hugging_face(loud, family, **more)
    _compare(model, prompts, 3, GREEDY, [])
    if family != "mistral":  # whose window counts padding behind a prefix
        _compare(model, prompts, 4, SAMPLINGS["drawn"], [7, 3, 22, 22, 9])


def test_waiting_prompts_take_the_rows_of_texts_that_have_ended(tiny, monkeypatch) -> None:
    """No more steps than full rows need, where batches that wait for their longest text take half as many again."""
    model, steps = tiny(max_seq_len=64).double(), list[int]()
    forward = model.hidden_states

    def counted(input_ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if input_ids.shape[1] == 1:
            steps.append(len(input_ids))
        return forward(input_ids, *arguments, **options)

    monkeypatch.setattr(model, "hidden_states", counted)
    lengths = [20 if text % 3 == 0 else 4 for text in range(24)]
    done: list[int] = []
    texts = generate_waiting(model, [[5, 6]] * 24, 3, max_new_tokens=20, sampling=Sampling(temperature=2.0),
                             eos_id=99, seeds=range(24), finished=lambda text, ids: len(ids) == lengths[text],
                             progress=lambda count, of: done.append(count))  # fmt: skip
    assert list(map(len, texts)) == lengths
    assert done == list(range(1, 25))
    needed = sum(length - 1 for length in lengths) / 3  # the first token of each comes of its prompt
    assert len(steps) < 1.2 * needed
    assert len(steps) < 8 * 19  # of eight batches, each with a text of 20


def test_caches_that_forget_take_no_waiting_prompts(tiny) -> None:
    assert takes_waiting(tiny(sliding_window=9), 9)
    assert not takes_waiting(tiny(sliding_window=9), 10)
    assert not takes_waiting(tiny(**PARTS["linear attention"]), 10)


@pytest.mark.parametrize("settings", [{}, {"sliding_window": 6}], ids=["waiting", "in batches"])
def test_an_answer_does_not_depend_on_how_many_are_written_side_by_side(tiny, prompts, settings) -> None:
    """Drawn by the seed and its number, and with a penalty on what all prompts begin with."""

    model = tiny(max_seq_len=64, **settings).double()
    begun = [[4, 19, 33, *prompt] for prompt in prompts]
    options: dict[str, Any] = {"max_new_tokens": 9, "sampling": Sampling(temperature=1.5, repetition_penalty=1.4)}
    found = [write_answers(model, Letters(), begun, batch_size=n, seed=5, **options) for n in (1, 3, 20)]
    assert found[0] == found[1] == found[2]
    for place, (prompt, answer) in enumerate(zip(begun, found[0], strict=True)):
        (alone,) = generate(model, torch.tensor([prompt]), eos_id=7, seed=5 + place, **options)
        assert answer.text == Letters().decode(alone)
