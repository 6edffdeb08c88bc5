"""Losses by position: the length of a chunk changes nothing, and each policy sees what it says."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from modern_llm.evaluation.long_context import (
    LossByPosition,
    fine_edges,
    long_texts,
    recomputed_nll,
    streamed_nll,
    under_policy,
)
from modern_llm.models import ModernDecoderLM, ModernLLMConfig, to_hugging_face
from modern_llm.models.attention.sinks import LearnableSinks, SinkLogits
from modern_llm.models.config import GQAConfig
from modern_llm.models.initialisation.gpt2 import GPT2Init
from modern_llm.tasks.long_context import verdict

CPU = torch.device("cpu")
IDS = torch.randint(1, 50, (2, 101), generator=torch.Generator().manual_seed(1))
LEARNED = {"learnable": LearnableSinks(12, 2), "logits": SinkLogits(12)}


def decoder(kind: str = "none") -> ModernDecoderLM:
    torch.manual_seed(0)
    more: dict[str, Any] = {"sinks": LEARNED[kind], "use_attention_sinks": True} if kind in LEARNED else {}
    config = ModernLLMConfig(
        vocab_size=50, max_seq_len=24, d_model=32, n_layers=2, n_heads=4, gqa=GQAConfig(2), init=GPT2Init(0.4), **more
    )
    return ModernDecoderLM(config).double().eval()


def models() -> dict[str, ModernDecoderLM]:
    plain = decoder()
    own: dict[str, ModernDecoderLM] = {kind: decoder(kind) for kind in LEARNED}
    return own | {policy: under_policy(plain, policy, 12, 3) for policy in ("full", "window", "streaming")}  # type: ignore[arg-type]


@torch.no_grad()
def without_a_cache(model: Any, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")


@pytest.mark.parametrize("kind", ["learnable", "logits", "full", "window", "streaming"])
def test_chunks_of_any_length_are_one_token_at_a_time_and_one_pass_over_everything(kind: str) -> None:
    model = models()[kind]
    expected = without_a_cache(model, IDS)
    for chunk in (1, 7, 12, 64, 100, 500):
        torch.testing.assert_close(streamed_nll(model, IDS, chunk, CPU), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_policy_decides_which_tokens_are_seen() -> None:
    """In a single layer a change of a token is felt by those that see it, and by no other."""
    torch.manual_seed(0)
    one = ModernDecoderLM(ModernLLMConfig(vocab_size=50, max_seq_len=24, d_model=32, n_layers=1, n_heads=4)).double()
    seen = {"full": lambda i, j: True, "window": lambda i, j: i - j < 12, "streaming": lambda i, j: j < 3 or i - j < 9}
    for policy, sees in seen.items():
        model = under_policy(one.eval(), policy, 12, 3)  # type: ignore[arg-type]
        before = streamed_nll(model, IDS, 5, CPU)
        for j in (0, 2, 3, 40):
            changed = IDS.clone()
            changed[:, j] = changed[:, j] % 49 + 1
            moved = (streamed_nll(model, changed, 5, CPU) - before).abs().amax(0) > 1e-9
            for i in range(j + 1, 100):
                assert bool(moved[i]) == sees(i, j), (policy, i, j)


def test_policies_share_the_weights_and_end_where_weights_would_be_lost() -> None:
    plain = decoder()
    other = under_policy(plain, "streaming", 12, 3)
    assert other.blocks[0].attention.qkv_proj.weight.data_ptr() == plain.blocks[0].attention.qkv_proj.weight.data_ptr()
    assert other.head.weight is other.embedding.weight
    learned = decoder("learnable")
    assert under_policy(learned, "own", 12, 3) is learned
    with pytest.raises(ValueError, match=r"learned LearnableSinks.*Use policy=own"):
        under_policy(learned, "window", 12, 3)


def test_a_full_cache_agrees_with_transformers() -> None:
    plain = decoder().float()
    expected = without_a_cache(to_hugging_face(plain).eval(), IDS)
    got = streamed_nll(under_policy(plain, "full", 12, 3), IDS, 9, CPU)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_recomputed_tokens_see_between_half_and_all_of_the_context() -> None:
    model = decoder()
    got, context, half = recomputed_nll(model, IDS, 24, CPU), 24, 12
    for target in range(1, 101):
        start = 0 if target <= context else (target - context - 1) // half * half + half
        logits = model(IDS[:, start:target]).logits[:, -1]
        assert target - start <= context
        assert target - start > half or start == 0
        expected = torch.nn.functional.cross_entropy(logits, IDS[:, target], reduction="none")
        torch.testing.assert_close(got[:, target - 1], expected.float(), atol=1e-5, rtol=1e-5)


def test_separators_are_not_counted_and_blocks_average_to_the_mean() -> None:
    ids = IDS.clone()
    ids[0, 5] = ids[1, 60] = 0
    nll = torch.rand(2, 100, generator=torch.Generator().manual_seed(2))
    losses, zero = LossByPosition(nll, ids, 0), LossByPosition(torch.zeros(2, 100), ids, 0)
    assert losses.mean(4, 5) == pytest.approx(float(nll[1, 4]))
    gaps = losses.block_differences(zero, 0, 100, block=100)
    kept = [nll[0][torch.arange(100) != 4].mean(), nll[1][torch.arange(100) != 59].mean()]
    assert gaps == pytest.approx([float(value) for value in kept])


def test_texts_are_pieces_of_the_corpus_far_from_each_other(corpus: Any) -> None:
    ids = long_texts(corpus, 500, 3, 7)
    assert ids[:, 0].tolist() == [7, 7, 7]
    for row, place in zip(ids, (0, 1000, 2000), strict=True):
        assert row[1:].tolist() == corpus.ids[place : place + 500].tolist()
    with pytest.raises(ValueError, match=r"has 3,000 tokens, and 5,000 are to be read"):
        long_texts(corpus, 5000, 3, 7)


def test_edges_grow_from_the_beginning_to_the_end() -> None:
    edges = fine_edges(4096)
    assert (edges[0], edges[1], edges[-1]) == (0, 16, 4096)
    ratios = [b / a for a, b in pairwise(edges[1:])]
    assert all(1.1 < ratio < 1.4 for ratio in ratios)


@pytest.mark.parametrize(("gap", "word"), [(0.0, "holds"), (0.5, "gets worse"), (2.0, "collapses")])
def test_a_gap_in_words(gap: float, word: str) -> None:
    nll = torch.rand(2, 512, generator=torch.Generator().manual_seed(0))
    ids = torch.ones(2, 513, dtype=torch.long)
    said, by = verdict(LossByPosition(nll + gap, ids, 0), LossByPosition(nll, ids, 0), 256, 512)
    assert said.startswith(f"it {word}.")
    assert by == pytest.approx(gap, abs=1e-6)
