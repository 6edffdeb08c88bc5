"""The strided window against brute force."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch

from modern_llm.data.text.tokens import CorpusCounts, TokenCorpus
from modern_llm.evaluation.perplexity import perplexity, windows
from modern_llm.models import ModernDecoderLM, ModernLLMConfig
from modern_llm.models.initialisation.gpt2 import GPT2Init

CPU = torch.device("cpu")


def model() -> ModernDecoderLM:
    torch.manual_seed(0)
    config = ModernLLMConfig(vocab_size=50, max_seq_len=64, d_model=32, n_layers=2, n_heads=2, init=GPT2Init(0.3))
    return ModernDecoderLM(config).double().eval()


@pytest.mark.parametrize(("context", "stride"), [(16, 16), (16, 4), (16, 1), (33, 10), (5, 5), (400, 400)])
def test_each_token_has_the_loss_of_its_window(corpus: TokenCorpus, context: int, stride: int) -> None:
    """Brute force: target t is scored in the first window that reaches it, from logits, one window at a time."""
    net, ids = model(), torch.tensor(corpus.ids[:301].astype(int))
    nats = scored = 0.0
    for target in range(1, len(ids)):
        if ids[target] == corpus.eos_id:
            continue
        number = max(0, math.ceil((target - context) / stride))
        start = number * stride
        logits = net(ids[None, start:target]).logits[0, -1]
        nats -= torch.log_softmax(logits, -1)[ids[target]].item()
        scored += 1
    part = replace(corpus, ids=corpus.ids[:301])
    measured = perplexity(net, part, context=context, stride=stride, batch_size=7, device=CPU)
    assert measured.tokens_scored == scored
    assert measured.loss == pytest.approx(nats / scored, rel=1e-9)
    assert measured.token_perplexity == pytest.approx(math.exp(nats / scored))
    assert measured.word_perplexity == pytest.approx(math.exp(nats / corpus.counts.words))
    assert measured.byte_perplexity == pytest.approx(math.exp(nats / corpus.counts.bytes))
    assert measured.bits_per_byte == pytest.approx(nats / corpus.counts.bytes / math.log(2))


def test_a_longer_stride_never_scores_fewer_tokens(corpus: TokenCorpus) -> None:
    net = model()
    scored = [
        perplexity(net, corpus, context=32, stride=stride, batch_size=16, device=CPU).tokens_scored
        for stride in (1, 2, 5, 16, 31, 32)
    ]
    assert set(scored) == {corpus.counts.tokens}


@pytest.mark.parametrize("length", [2, 3, 17, 100, 101])
@pytest.mark.parametrize(("context", "stride"), [(1, 1), (8, 8), (8, 3), (200, 200)])
def test_windows_score_every_target_once(length: int, context: int, stride: int) -> None:
    targets = [t for start, end, first in windows(length, context, stride) for t in range(start + first + 1, end + 1)]
    assert targets == list(range(1, length))


def test_batching_changes_nothing(corpus: TokenCorpus) -> None:
    net = model()
    one, many = (perplexity(net, corpus, context=24, stride=7, batch_size=b, device=CPU).loss for b in (1, 50))
    assert one == pytest.approx(many, rel=1e-12)


def test_a_part_has_no_word_or_byte_figures(corpus: TokenCorpus) -> None:
    part = perplexity(model(), corpus, context=16, stride=16, batch_size=4, device=CPU, max_tokens=100)
    assert part.tokens_scored <= 100
    assert part.word_perplexity is part.byte_perplexity is part.bits_per_byte is None


def test_document_masking_scores_each_document_alone(corpus: TokenCorpus) -> None:
    """Windows that hold the whole text: the loss is that of the documents one by one."""
    net, ids = model(), corpus.ids[:61]
    part = replace(corpus, ids=ids)
    borders = [i for i, token in enumerate(ids) if token == 0] + [len(ids)]
    nats = 0.0
    for start, end in itertools.pairwise(borders):
        document = torch.tensor(ids[start:end].astype(int))
        if len(document) > 1:
            logits = net(document[None, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, document[1:], reduction="sum").item()
    measured = perplexity(net, part, context=60, stride=60, batch_size=1, device=CPU, document_ids=True)
    assert measured.loss * measured.tokens_scored == pytest.approx(nats, rel=1e-6)


def test_a_stride_that_skips_tokens_is_refused(corpus: TokenCorpus) -> None:
    with pytest.raises(ValueError, match="stride=17"):
        perplexity(model(), corpus, context=16, stride=17, batch_size=1, device=CPU)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(corpus: TokenCorpus) -> None:
    net = model()
    torch.nn.init.zeros_(net.head.weight)
    counts = CorpusCounts(tokens=corpus.counts.tokens, documents=1, words=corpus.counts.tokens, bytes=1)
    measured = perplexity(net, replace(corpus, counts=counts), context=8, stride=8, batch_size=64, device=CPU)
    assert measured.token_perplexity == pytest.approx(50)
    assert measured.word_perplexity == pytest.approx(50)
