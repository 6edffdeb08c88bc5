"""Whole models from outside of the package: texts taken apart in front of them, with caches of their own or none."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modern_llm.models.custom import CustomModel
from modern_llm.models.custom_decoder import CustomDecoder, decoder_of
from modern_llm.models.decoding.generation import generate, prefilled

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples" / "lab"))
from my_lab.gru import GRU


class Sums(nn.Module):
    """Each token's hidden state is the mean of all that were read: it tells what a text was."""

    def __init__(self, vocab_size: int, bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, 8)
        self.head = nn.Linear(8, vocab_size, bias=bias)

    def forward(self, input_ids: Tensor) -> Tensor:
        count = torch.arange(1, input_ids.shape[1] + 1)[:, None]
        return self.embedding(input_ids).cumsum(1) / count


@dataclass(frozen=True)
class SumsModel(CustomModel):
    fault: str = ""

    def build(self) -> nn.Module:
        assert self.vocab_size is not None
        found: Any = Sums(self.vocab_size - 1 if self.fault == "small" else self.vocab_size, self.fault == "bias")
        if self.fault == "cache":
            found.new_cache = lambda batch_size, max_tokens: None
        return found


MODELS = {"without a cache": SumsModel(vocab_size=17), "with its own": GRU(vocab_size=17, width=12, n_layers=2)}
both = pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)


def random_ids(*shape: int) -> Tensor:
    return torch.randint(1, 17, shape, generator=torch.Generator().manual_seed(0))


@both
def test_padding_documents_and_branches_are_what_each_text_is_alone(config: CustomModel) -> None:
    torch.manual_seed(0)
    model, ids = CustomDecoder(config), random_ids(2, 9)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0, 0, 0]])
    hidden = model.hidden_states(ids, mask).hidden
    torch.testing.assert_close(hidden[0, 2:], model.model(ids[:1, 2:])[0])
    torch.testing.assert_close(hidden[1, :5], model.model(ids[1:, :5])[0])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 2]] * 2)
    hidden = model.hidden_states(ids, document_ids=documents).hidden
    torch.testing.assert_close(hidden[:, 3:8], model.model(ids[:, 3:8]))
    branches = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]] * 2)
    hidden = model.hidden_states(ids, branch_ids=branches).hidden
    second = torch.cat([ids[:, :3], ids[:, 5:]], 1)
    torch.testing.assert_close(hidden[:, 5:], model.model(second)[:, 3:])
    torch.testing.assert_close(hidden[:, :5], model.model(ids[:, :5]))


@both
def test_texts_go_on_as_a_full_pass_says(config: CustomModel) -> None:
    torch.manual_seed(0)
    model = CustomDecoder(config).eval()
    padded, mask = random_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    mask[0, :3] = 0
    prompts = [padded[0, 3:].tolist(), padded[1].tolist()]
    found = generate(model, padded, mask, max_new_tokens=6)
    prefix = prefilled(model, prompts[1])
    assert generate(model, random_ids(2, 3), max_new_tokens=1, prefix=prefix)
    for prompt, continuation in zip(prompts, found, strict=True):
        ids = list(prompt)
        assert len(continuation) == 6
        for token in continuation:
            logits = model(torch.tensor([ids])).logits
            assert logits is not None
            assert int(logits[0, -1].argmax()) == token
            ids.append(token)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="not known yet"):
        CustomDecoder(SumsModel())
    with pytest.raises(ValueError, match="SumsModel: its module needs a head"):
        CustomDecoder(SumsModel(vocab_size=17, fault="small"))
    with pytest.raises(ValueError, match="without a bias"):
        CustomDecoder(SumsModel(vocab_size=17, fault="bias"))
    with pytest.raises(ValueError, match="its forward takes no cache"):
        CustomDecoder(SumsModel(vocab_size=17, fault="cache"))
    with pytest.raises(ValueError, match=r"model\.vocab_size"):
        SumsModel(vocab_size=5).with_vocab_size(17)
    assert isinstance(decoder_of(SumsModel(vocab_size=17)), CustomDecoder)
