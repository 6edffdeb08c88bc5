"""Answers drawn side by side: those that are drawn one by one, with the model's own log-probabilities."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from made_models import Letters

from modern_llm.models import generate
from modern_llm.models.attention.rope import NoRope
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits
from modern_llm.models.decoding.drawing import draw
from modern_llm.models.decoding.sampling import Sampling

SAMPLING = Sampling(temperature=3.0)


PROMPTS = [[3, 9, 4, 11, 2], [5, 1], [8, 8, 30, 12, 6, 1, 2]]
MODELS: list[dict[str, Any]] = [
    {},
    {"use_attention_sinks": True},
    {"group_size": 2, "attention_softcap": 20.0},
    {"group_size": 4, "use_attention_sinks": True, "sinks": LearnableSinks(window=40, num_sinks=2)},
    {"group_size": 2, "use_attention_sinks": True, "sinks": SinkLogits(window=8)},
    {"group_size": 2, "rope": NoRope()},
]


@pytest.fixture(autouse=True)
def _shared_however_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modern_llm.models.kernels._FEWEST_SHARED", 0)


@pytest.mark.parametrize("rows", [None, 1, 3])
@pytest.mark.parametrize("options", MODELS)
@pytest.mark.parametrize(("prompts", "n"), [(PROMPTS, 4), ([PROMPTS[0]], 4), ([[4], [5, 6]], 4), (PROMPTS, 1)])
def test_each_answer_is_the_one_that_its_seed_draws_alone(tiny, options, prompts, n, rows) -> None:
    model = tiny(max_seq_len=64, **options).eval()
    seeds = list(range(100, 100 + n * len(prompts)))
    drawn = draw(model, Letters(), prompts, n, rows, max_new_tokens=12, sampling=SAMPLING, seeds=seeds)
    ended = 0
    for prompt, answers in zip(prompts, drawn, strict=True):
        assert len(answers) == n
        for answer in answers:
            (alone,) = generate(model, torch.tensor([prompt]), max_new_tokens=12, sampling=SAMPLING,
                                seed=seeds.pop(0), eos_id=7)  # fmt: skip
            assert answer.ids == alone + ([7] if answer.ended else [])
            assert answer.text == Letters().decode(alone)
            assert answer.ended or len(alone) == 12
            ended += answer.ended
            with torch.no_grad():
                hidden = model.hidden_states(torch.tensor([[*prompt, *answer.ids]])).hidden[0, len(prompt) - 1 : -1]
                chance = (model.output_head.logits(hidden) / 3.0).log_softmax(-1)
            known = chance[range(len(answer.ids)), answer.ids]
            torch.testing.assert_close(torch.tensor(answer.log_probs), known, rtol=0, atol=1e-5)
            entropy = torch.distributions.Categorical(logits=chance).entropy()
            torch.testing.assert_close(torch.tensor(answer.entropies), entropy, rtol=0, atol=1e-5)
    if n * len(prompts) == 12:
        assert ended


def test_a_stop_string_ends_an_answer_and_is_cut_from_its_text_but_not_from_its_ids(tiny) -> None:
    model = tiny(max_seq_len=64).eval()
    (free,) = draw(model, Letters(), [PROMPTS[0]], 1, max_new_tokens=12, sampling=SAMPLING, seeds=[3])
    stop = free[0].text[4:6]
    (cut,) = draw(model, Letters(), [PROMPTS[0]], 1, max_new_tokens=12, sampling=SAMPLING, seeds=[3], stop=[stop])
    place = free[0].text.index(stop)
    assert cut[0].text == free[0].text[:place]
    assert cut[0].ids == free[0].ids[: place + 2]
    assert len(cut[0].log_probs) == len(cut[0].ids)
    assert cut[0].ended


def test_what_is_dropped_from_a_choice_has_no_part_in_its_entropy(tiny) -> None:
    model = tiny(max_seq_len=64).eval()
    sampling = Sampling(temperature=3.0, top_k=2)
    ((answer,),) = draw(model, Letters(), [PROMPTS[0]], 1, max_new_tokens=8, sampling=sampling, seeds=[1])
    chances = torch.tensor(answer.log_probs).exp()
    expected = -(chances * chances.log() + (1 - chances) * (1 - chances).log())
    torch.testing.assert_close(torch.tensor(answer.entropies), expected, rtol=0, atol=1e-5)
