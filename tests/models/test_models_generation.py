"""Decoding against transformers, and each promise of the decoding loop."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modern_llm.models import from_hugging_face, generate, generate_text, stream_tokens
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits, StreamingSinks
from modern_llm.models.config import MoEConfig
from modern_llm.models.decoding.choosing import choose, filter_logits
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.models.decoding.uniform import UniformNumbers


class Letters:
    """A tokenizer whose ids are the letters a to z, with eos 26 and no bos."""

    eos_id = 26
    bos_id = None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture
def letters(tiny):
    """A model of the alphabet that goes through many letters."""
    return tiny(vocab_size=27, max_seq_len=64, tie_embeddings=False, seed=3)


FAMILIES = {
    "llama": {"num_key_value_heads": 2},
    "mistral": {"sliding_window": 6},
    "qwen3": {"head_dim": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
}


@pytest.mark.parametrize(("family", "overrides"), FAMILIES.items(), ids=FAMILIES)
@pytest.mark.parametrize("padded", [False, True])
def test_greedy_decoding_equals_transformers(loud, token_ids, family, overrides, padded):
    config = AutoConfig.for_model(
        family,
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        tie_word_embeddings=False,
        **({"num_key_value_heads": 4} | overrides),
    )
    theirs = loud(AutoModelForCausalLM.from_config(config).float())
    ids, mask = token_ids(3, 9), torch.ones(3, 9).long()
    if padded:
        mask = (torch.arange(9) >= torch.tensor([[6], [0], [3]])).long()
    expected = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=20)[:, 9:]
    got = generate(from_hugging_face(theirs), ids, mask, max_new_tokens=20)
    assert got == expected.tolist()
    assert len({tuple(text) for text in got}) == 3  # not one and the same loop


@pytest.mark.parametrize(
    "settings",
    [
        {"group_size": 2},
        {"moe": MoEConfig(4, 2)},
        {"sliding_window": 5},
        {"use_attention_sinks": True, "sinks": LearnableSinks(window=5, num_sinks=2)},
        {"use_attention_sinks": True, "sinks": SinkLogits(window=5)},
        {"use_attention_sinks": True, "sinks": StreamingSinks(window=5, num_sinks=2)},
    ],
    ids=["gqa", "moe", "sliding", "learnable", "logits", "streaming"],
)
@torch.no_grad()
def test_greedy_decoding_takes_the_largest_logit_of_a_full_pass(tiny, token_ids, settings):
    model, ids = tiny(**settings), token_ids(2, 7)
    texts = generate(model, ids, max_new_tokens=15)
    for row, text in enumerate(texts):
        whole = torch.cat([ids[row], torch.tensor(text)])
        assert model(whole[None]).logits[0, 6:-1].argmax(-1).tolist() == text


def _logits(rows: int = 6) -> torch.Tensor:
    return 3 * torch.randn(rows, 61, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sampling", "theirs"),
    [
        (Sampling(top_k=1), [TopKLogitsWarper(1)]),
        (Sampling(top_k=7), [TopKLogitsWarper(7)]),
        (Sampling(top_k=61), []),
        (Sampling(top_k=1000), [TopKLogitsWarper(1000)]),
        (Sampling(top_p=0.9), [TopPLogitsWarper(0.9)]),
        (Sampling(top_p=0.05), [TopPLogitsWarper(0.05)]),
        (Sampling(top_p=0.999), [TopPLogitsWarper(0.999)]),
        (Sampling(min_p=0.02), [MinPLogitsWarper(0.02)]),
        (Sampling(min_p=0.9), [MinPLogitsWarper(0.9)]),
        (Sampling(temperature=0.7), [TemperatureLogitsWarper(0.7)]),
        (Sampling(repetition_penalty=1.4), [RepetitionPenaltyLogitsProcessor(1.4)]),
        (Sampling(repetition_penalty=0.8), [RepetitionPenaltyLogitsProcessor(0.8)]),
        (
            Sampling(1.3, 1.7, 20, 0.95, 0.03),
            [
                RepetitionPenaltyLogitsProcessor(1.3),
                TemperatureLogitsWarper(1.7),
                TopKLogitsWarper(20),
                TopPLogitsWarper(0.95),
                MinPLogitsWarper(0.03),
            ],
        ),
    ],
)
def test_filters_agree_with_transformers(token_ids, sampling, theirs):
    logits, ids = _logits(), token_ids(6, 10)
    occurred = torch.zeros(6, 61, dtype=torch.bool).scatter(1, ids, True)
    expected = logits.clone()
    for processor in theirs:
        expected = processor(ids, expected)
    before = logits.clone()
    torch.testing.assert_close(filter_logits(logits, sampling, occurred), expected)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_softmax(temperature):
    logits, draws = torch.tensor([1.0, 0.0, -1.0, 2.0, -torch.inf, 0.5]), 20_000
    sampling = Sampling(temperature=temperature)
    filtered = filter_logits(logits.expand(100, -1), sampling)
    numbers = UniformNumbers(range(100), filtered.device)
    ids = torch.cat([choose(filtered, sampling, numbers) for _ in range(draws // 100)])
    counts = torch.bincount(ids, minlength=6).double()
    expected = draws * (logits / temperature).softmax(0).double()
    assert counts[4] == 0
    likely = expected > 0
    statistic = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    assert statistic < 20.5  # chi-square with 4 degrees of freedom exceeds it in 0.04 % of all seeds


def test_a_text_does_not_depend_on_its_neighbours(tiny, token_ids):
    """Row b draws from seed + b: the same text alone, elsewhere in another batch, and under padding."""
    model, ids = tiny(max_seq_len=64), token_ids(3, 9)
    sampling = Sampling(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, repetition_penalty=1.1)
    together = generate(model, ids, max_new_tokens=20, sampling=sampling, seed=5)
    for row in range(3):
        alone = generate(model, ids[[row]], max_new_tokens=20, sampling=sampling, seed=5 + row)
        assert alone == [together[row]]
    padded = torch.cat([torch.zeros(3, 4).long(), ids], 1)
    padded[0] = token_ids(13, seed=9)
    mask = (torch.arange(13) >= torch.tensor([[0], [4], [4]])).long()
    assert generate(model, padded, mask, max_new_tokens=20, sampling=sampling, seed=5)[1:] == together[1:]


def test_seeds_decide_the_text(tiny, token_ids):
    model, ids = tiny(max_seq_len=64), token_ids(2, 9)
    texts = [generate(model, ids, max_new_tokens=12, sampling=Sampling(temperature=4), seed=seed) for seed in (1, 1, 7)]
    torch.manual_seed(3)  # the global generator has no say
    texts.append(generate(model, ids, max_new_tokens=12, sampling=Sampling(temperature=4), seed=1))
    assert texts[0] == texts[1] == texts[3] != texts[2]


@torch.no_grad()
def test_repetition_penalty_counts_prompt_and_text_but_no_padding(tiny, token_ids):
    """Against full passes over the real tokens alone and the processor of transformers."""
    model, ids = tiny(max_seq_len=64, tie_embeddings=False), token_ids(2, 11)
    start, penalty = 3, RepetitionPenaltyLogitsProcessor(3.0)
    mask = (torch.arange(11) >= torch.tensor([[start], [0]])).long()
    text = ids[:1, start:]
    for _ in range(20):
        text = torch.cat([text, penalty(text, model(text).logits[:, -1]).argmax(-1, keepdim=True)], 1)
    ids[0, :start] = text[0, -3:]  # padding that would count if it were looked at
    got = generate(model, ids, mask, max_new_tokens=20, sampling=Sampling(repetition_penalty=3.0, temperature=0))
    assert got[0] == text[0, 8:].tolist()
    assert got[0] != generate(model, ids, mask, max_new_tokens=20)[0]


def test_eos_ends_each_text_by_itself(tiny, token_ids):
    model, ids = tiny(max_seq_len=64), token_ids(3, 5)
    free = generate(model, ids, max_new_tokens=25, sampling=Sampling(), seed=2)
    eos = free[1][6]
    cut = generate(model, ids, max_new_tokens=25, sampling=Sampling(), seed=2, eos_id=eos)
    expected = [text[: text.index(eos)] if eos in text else text for text in free]
    assert cut == expected
    assert len(cut[1]) < 25


WINDOW = {"num_sinks": 2, "window": 6}


@pytest.mark.parametrize(
    ("settings", "padded"),
    [
        ({}, False),
        ({}, True),
        ({"sliding_window": 6}, False),
        ({"sliding_window": 6}, True),
        ({"use_attention_sinks": True, "sinks": LearnableSinks(**WINDOW)}, True),
        ({"use_attention_sinks": True, "sinks": StreamingSinks(**WINDOW)}, False),
    ],
    ids=["full", "full, padded", "window", "window, padded", "learnable sinks, padded", "streaming sinks"],
)
def test_texts_that_have_ended_leave_the_batch(tiny, token_ids, monkeypatch, settings, padded):
    """Row by row the same ids, and once half of the rows have ended, only the others are computed."""
    model, prompts = tiny(tie_embeddings=False, **settings).double(), token_ids(6, 5)
    mask = torch.ones(6, 5, dtype=torch.long)
    if padded:
        mask[1, :2] = mask[4, :3] = 0
    lengths, computed = [3, 12, 5, 1, 2, 7], []
    forward = model.hidden_states

    def counted(input_ids, **options):
        computed.append(len(input_ids))
        return forward(input_ids, **options)

    sampling = Sampling(temperature=1.3, repetition_penalty=1.2)
    options = {"max_new_tokens": 12, "sampling": sampling}
    alone = [
        generate(
            model, prompts[[b]], mask[[b]], seed=b, finished=lambda row, ids, b=b: len(ids) == lengths[b], **options
        )
        for b in range(6)
    ]
    monkeypatch.setattr(model, "hidden_states", counted)
    together = generate(model, prompts, mask, finished=lambda row, ids: len(ids) == lengths[row], **options)
    assert together == [ids for (ids,) in alone]
    assert computed == [6, 6, 6, 3, 3, 3, 3, 1, 1, 1, 1, 1]


def test_finished_ends_a_text(tiny, token_ids):
    model, ids = tiny(), token_ids(2, 5)
    calls = []

    def finished(row: int, new: list[int]) -> bool:
        calls.append((row, len(new)))
        return len(new) == (2 if row == 0 else 4)

    texts = generate(model, ids, max_new_tokens=10, finished=finished)
    assert texts == [t[:n] for t, n in zip(generate(model, ids, max_new_tokens=10), (2, 4), strict=True)]
    assert calls == [(0, 1), (1, 1), (0, 2), (1, 2), (1, 3), (1, 4)]


def test_text_is_cut_before_the_first_stop_string(letters):
    sampling = Sampling()
    whole = generate_text(letters, Letters(), "hello", max_new_tokens=30, sampling=sampling, seed=4)[0]
    assert len(set(whole)) > 5
    for stop in (whole[3:5], whole[10:13], whole[0]):
        (got,) = generate_text(letters, Letters(), "hello", max_new_tokens=30, sampling=sampling, seed=4, stop=[stop])
        assert got == whole[: whole.index(stop)]
    first, second = whole[12:14], whole[7:9]
    both = generate_text(
        letters, Letters(), "hello", max_new_tokens=30, sampling=sampling, seed=4, stop=[first, second]
    )
    assert both == [whole[: min(whole.index(first), whole.index(second))]]


def test_prompts_of_different_length_in_one_call(letters):
    prompts = ["a", "hello", "thequickbrownfox"]
    together = generate_text(letters, Letters(), prompts, max_new_tokens=12)
    assert together == [generate_text(letters, Letters(), p, max_new_tokens=12)[0] for p in prompts]
    assert len(set(together)) == 3
    assert generate_text(letters, Letters(), []) == []


def test_a_prompt_starts_with_bos_or_else_eos(letters):
    class WithBos(Letters):
        bos_id = 3

    (got,) = generate_text(letters, WithBos(), "hello", max_new_tokens=5)
    ids = torch.tensor([[3, *Letters().encode("hello")]])
    assert got == Letters().decode(generate(letters, ids, max_new_tokens=5, eos_id=26)[0])
    ids[0, 0] = 26
    (got,) = generate_text(letters, Letters(), "hello", max_new_tokens=5)
    assert got == Letters().decode(generate(letters, ids, max_new_tokens=5, eos_id=26)[0])


def test_impossible_requests_are_refused(tiny, letters, token_ids):
    model, ids = tiny(), token_ids(2, 5)
    with pytest.raises(ValueError, match="Pad on the left"):
        generate(model, ids, torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), max_new_tokens=3)
    with pytest.raises(ValueError, match="no tokens"):
        generate(model, ids[:, :0], max_new_tokens=3)
    with pytest.raises(ValueError, match="unbounded stream"):
        next(stream_tokens(model, ids))
    with pytest.raises(ValueError, match="empty string"):
        generate_text(letters, Letters(), "a", stop=[""])


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": 1.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_impossible_sampling_is_refused(settings, key):
    with pytest.raises(ValueError, match=rf"sampling\.{key}="):
        Sampling(**settings)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_model_comes_back(tiny, token_ids, mode):
    model, ids = tiny(dropout=0.5).train(mode), token_ids(1, 5)
    expected = generate(tiny(), ids, max_new_tokens=5)
    assert generate(model, ids, max_new_tokens=5) == expected  # without dropout
    assert model.training is mode
    for _ in stream_tokens(model, ids, max_new_tokens=5):
        break
    assert model.training is mode
    with pytest.raises(ValueError, match="holds"):  # an error in the middle of the stream
        list(stream_tokens(_Forgetful(model), ids, max_new_tokens=5))
    assert model.training is mode


class _Forgetful:
    """The same model, with a cache that is too small."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def new_cache(self, batch_size, max_tokens):
        return self.model.new_cache(batch_size, max_tokens - 3)


def test_a_stream_leaves_the_callers_gradients_alone(tiny, token_ids):
    """Between two tokens the caller may train, and use the ids that it got."""
    model, ids = tiny(), token_ids(2, 5)
    for new in stream_tokens(model, ids, max_new_tokens=3):
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        model(new[:, None]).logits.sum().backward()
    assert model.embedding.weight.grad.abs().max() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_goes_on_after_a_generation_beyond_the_trained_length(tiny, token_ids, mode):
    """The table of angles grows while text is generated; later gradients flow through it."""
    model, ids = tiny(max_seq_len=8), token_ids(2, 12)
    mask = torch.tensor([[0] + [1] * 11, [1] * 12])
    with mode():
        generate(model, ids, mask, max_new_tokens=5)
    assert len(model.rotary.cos) > 12
    model(ids, labels=ids).loss.backward()
    assert model.embedding.weight.grad.isfinite().all()


def test_an_endless_stream_goes_past_every_window(tiny, token_ids):
    model, ids = tiny(use_attention_sinks=True, sinks=StreamingSinks(window=6, num_sinks=2)), token_ids(1, 4)
    stream = stream_tokens(model, ids, sampling=GREEDY)
    endless = [int(next(stream)) for _ in range(40)]
    assert endless == generate(model, ids, max_new_tokens=40)[0]
