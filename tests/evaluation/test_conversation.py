"""Answers on a cache that is kept, against reading the whole conversation for every token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_models import CHAT, byte_tokenizer, make_model

from modern_llm.data.chat import with_chat
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.evaluation.conversation import ContextFullError, Conversation
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.attention.sinks import LearnableSinks, StreamingSinks
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.pretrained.causal import HuggingFaceCausalLM

KINDS = ["gpt2", "llama", "own", "learnable", "streaming"]
# Forgets all but the last turn, so that what comes next never continues what was read.
FORGETS = "{% for m in messages[-1:] %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def model_of(kind: str) -> Any:
    if kind in ("gpt2", "llama"):
        return HuggingFaceCausalLM(make_model(kind)).eval()
    torch.manual_seed(0)
    sinks = {"streaming": StreamingSinks(24, 3), "learnable": LearnableSinks(24, 2)}.get(kind)
    more: dict[str, Any] = {"sinks": sinks, "use_attention_sinks": True} if sinks else {}
    config = ModernLLMConfig(
        vocab_size=257, d_model=32, n_layers=2, n_heads=4, max_seq_len=256, init=GPT2Init(0.3), **more
    )
    return ModernDecoderLM(config).eval()


def talk_to(kind: str, template: str | None = None, **settings: Any) -> Conversation:
    tokenizer = byte_tokenizer()
    tokenizer = tokenizer.with_chat_template(template) if template else with_chat(tokenizer)
    context = None if kind in ("learnable", "streaming") else 256
    given = {"sampling": GREEDY, "max_new_tokens": 12} | settings
    return Conversation(model_of(kind), tokenizer, context, **given)


def written(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


@torch.no_grad()
def likeliest(talk: Conversation, ids: list[int]) -> int:
    hidden = talk.model.hidden_states(torch.tensor([ids])).hidden[0, -1]
    return int((talk.model.output_head.weight @ hidden).argmax())


@pytest.mark.parametrize("template", [None, CHAT], ids=["default", "own"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_token_is_the_one_of_reading_everything_anew(kind: str, template: str | None) -> None:
    talk = talk_to(kind, template)
    for question in ("one?", "and two?", "three"):
        before = len(talk.ids)
        told = "".join(talk.answer(question))
        assert told == talk.messages[-1]["content"]
        asked = talk.tokenizer.encode(talk.writer.text(talk.messages[:-1], answer_follows=True))
        answered = min(12, len(talk.ids) - before) if talk.cut_off else 1
        assert len(asked) > answered
        for place in range(len(talk.ids) - answered, len(talk.ids)):
            assert talk.ids[place] == likeliest(talk, talk.ids[:place])
    conversation = talk.writer.text(talk.messages, answer_follows=False)
    assert conversation.startswith(written(talk.tokenizer, talk.ids))
    assert talk._cache.length == len(talk.ids) - 1  # everything was read once


def test_an_end_that_the_model_writes_is_not_written_twice() -> None:
    seed = next(seed for seed in range(200) if not _cut_off(seed))  # one that ends its answers by itself
    talk = talk_to("own", sampling=Sampling(temperature=5.0), seed=seed, max_new_tokens=200)
    list(talk.answer("a"))
    assert talk.ids[-1] == talk.tokenizer.eos_id
    list(talk.answer("b"))
    assert written(talk.tokenizer, talk.ids).startswith(talk.writer.text(talk.messages[:-1], answer_follows=True))


def _cut_off(seed: int) -> bool:
    talk = talk_to("own", sampling=Sampling(temperature=5.0), seed=seed, max_new_tokens=60)
    list(talk.answer("a"))
    return bool(talk.cut_off)


def test_a_template_that_rewrites_turns_is_read_anew() -> None:
    talk = talk_to("own", FORGETS)
    for question in ("one", "and two"):
        list(talk.answer(question))
        asked = talk.tokenizer.encode(f"<user>{question}")
        assert talk.ids[: len(asked)] == asked
        assert talk.ids[len(asked)] == likeliest(talk, asked)
        assert talk._cache.length == len(talk.ids) - 1


@pytest.mark.parametrize("kind", ["gpt2", "own"])
def test_a_full_context_is_told_and_leaves_the_conversation_as_it_was(kind: str) -> None:
    talk = talk_to(kind, max_new_tokens=100)
    list(talk.answer("x"))
    list(talk.answer("y" * 60))
    assert talk.cut_off == "context"
    assert len(talk.ids) == 256
    before = (list(talk.ids), list(talk.messages))
    with pytest.raises(ContextFullError, match="context of 256 tokens is full: 256 are taken"):
        list(talk.answer("more"))
    assert (talk.ids, talk.messages) == before
    talk.reset()
    assert "".join(talk.answer("x")) == "".join(talk_to(kind, max_new_tokens=100).answer("x"))


@pytest.mark.parametrize("kind", ["learnable", "streaming"])
def test_sinks_have_no_end_and_a_cache_that_stays_as_it_is(kind: str) -> None:
    talk = talk_to(kind)
    capacity = talk._cache.parts[0].capacity
    for turn in range(12):
        list(talk.answer(f"question {turn}"))
    assert len(talk.ids) > 256
    assert talk._cache.parts[0].capacity == capacity <= 27
    place = len(talk.ids) - 1
    assert talk.ids[place] == likeliest(talk, talk.ids[:place])


def test_a_reader_who_stops_keeps_what_came() -> None:
    talk = talk_to("own")
    answer = talk.answer("one?")
    first = next(answer)
    answer.close()  # type: ignore[attr-defined]
    assert talk.messages[-1] == {"role": "assistant", "content": first}
    before = len(talk.ids)
    list(talk.answer("two?"))
    assert talk.ids[-1] == likeliest(talk, talk.ids[:-1])
    assert len(talk.ids) > before
