"""Continuous batching: each text is the one that is written alone, and rows are hardly ever idle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from made_models import Letters
from parts import PARTS
from transformers import AutoConfig, AutoModelForCausalLM

from modern_llm.evaluation.answering import write_answers
from modern_llm.models import generate
from modern_llm.models.attention.layers import LayerPattern
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits
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
                             ended=lambda text, ids: done.append((text, len(ids))))  # fmt: skip
    assert list(map(len, texts)) == lengths
    assert sorted(done) == list(enumerate(lengths))
    assert done != sorted(done)  # told of as they end
    needed = sum(length - 1 for length in lengths) / 3  # the first token of each comes of its prompt
    assert len(steps) < 1.2 * needed
    assert len(steps) < 8 * 19  # of eight batches, each with a text of 20


SHARED: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"sliding_window": 60, "group_size": 2},
    "learnable sinks": {"use_attention_sinks": True, "sinks": LearnableSinks(window=60, num_sinks=3), "group_size": 4},
    "sink logits": {"use_attention_sinks": True, "sinks": SinkLogits(window=60), "group_size": 2},
    "capped": {"attention_softcap": 20.0},
    "a window that evicts": {"sliding_window": 6},
    "canon": PARTS["canon of projections"],
    "linear attention": PARTS["linear attention"],
}
OWNERS = [4, 0, 0, 2, 1, 4, 3, 3, 4, 0, 1, 4, 4, 2, 4, 0, 3]
OWNED_PROMPTS = [[3, 9, 4, 11, 2], [5], [8, 8, 30, 12, 6, 1, 2], [5, 1], [2, 3, 4, 5, 6, 7, 8, 9, 10]]


def _compare_owned(model: Any, rows: int, sampling: Sampling, lengths: list[int], shared: list[int]) -> None:
    seeds = list(range(70, 70 + len(OWNERS)))
    told: dict[int, list[int]] = {}
    prefix = prefilled(model, shared) if shared else None
    got = generate_waiting(model, OWNED_PROMPTS, rows, owners=OWNERS, max_new_tokens=13, sampling=sampling, eos_id=60,
                           seeds=seeds, prefix=prefix, ended=lambda text, ids: told.update({text: ids}),
                           finished=lambda text, ids: len(ids) == lengths[text])  # fmt: skip
    for text, (owner, seed) in enumerate(zip(OWNERS, seeds, strict=True)):
        whole = torch.tensor([[*shared, *OWNED_PROMPTS[owner]]])
        alone = generate(model, whole, max_new_tokens=lengths[text], sampling=sampling, eos_id=60, seed=seed)
        assert got[text] == alone[0], text
        assert told[text] == alone[0] + [60] * (len(alone[0]) < lengths[text])


@pytest.fixture(params=["shared", "copied"])
def prompts_are(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """And memory that nobody has written is no number."""
    monkeypatch.setattr("modern_llm.models.kernels._FEWEST_SHARED", 0 if request.param == "shared" else 2**40)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("every", "sampling"), [(1, "drawn"), (8, "drawn"), (1, "penalised"), (8, "greedy")])
@pytest.mark.parametrize("name", SHARED)
def test_texts_of_one_prompt_that_enter_at_different_times(tiny, monkeypatch, prompts_are, name, every, sampling):
    """Prompts of five lengths with one to six texts, which end all over, or all at the limit."""
    monkeypatch.setattr(continuous, "tokens_per_read", lambda device: every)
    model = tiny(max_seq_len=64, **SHARED[name]).double()
    lengths = [1 + (7 * text) % 13 for text in range(len(OWNERS))]
    for rows, ends in ((3, lengths), (8, lengths), (5, [13] * len(OWNERS))):
        _compare_owned(model, rows, SAMPLINGS[sampling], ends, [])
    if takes_waiting(model, 30):  # others take no padding behind a prefix
        _compare_owned(model, 5, SAMPLINGS[sampling], lengths, [7, 22])


@pytest.mark.parametrize(("family", "more"), FAMILIES.items(), ids=FAMILIES)
def test_texts_of_one_prompt_in_models_of_transformers(loud, prompts_are, family, more) -> None:
    model = _hugging_face(loud, family, **more)
    lengths = [1 + (7 * text) % 13 for text in range(len(OWNERS))]
    for rows in (3, 8):
        _compare_owned(model, rows, SAMPLINGS["drawn"], lengths, [])
    if family != "mistral":
        _compare_owned(model, 5, SAMPLINGS["penalised"], lengths, [7, 22])


def test_a_prompt_is_read_once_while_texts_go_on_from_it(tiny, prompts_are, monkeypatch) -> None:
    """Also where all of them end at the same time. And no more steps than full rows need."""
    model, read, steps = tiny(max_seq_len=64).double(), list[int](), list[int]()
    forward = model.hidden_states

    def counted(input_ids: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        (steps if input_ids.shape[1] == 1 else read).append(len(input_ids))
        return forward(input_ids, *arguments, **options)

    monkeypatch.setattr(model, "hidden_states", counted)
    prompts, owners = [[5, 6, 7], [8, 9, 10, 11]], [0] * 24 + [1] * 24
    for lengths in ([9] * 48, [20 if text % 3 == 0 else 4 for text in range(48)]):
        read.clear()
        steps.clear()
        texts = generate_waiting(model, prompts, 8, owners=owners, max_new_tokens=20, sampling=Sampling(2.0),
                                 eos_id=99, seeds=range(48), finished=lambda text, ids: len(ids) == lengths[text])  # noqa: B023  # fmt: skip
        assert list(map(len, texts)) == lengths
        assert sum(read) == 2
        assert max(steps) == 8
        assert len(steps) < 1.25 * sum(length - 1 for length in lengths) / 8


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
