"""Trained weights in bf16: rounding at random is right on average, runs learn and are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import model, rows, stream, trainer, whole_and_resumed

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.optimization.narrow import rounded_at_random
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.settings import Hardware

WIDE = {"d_model": 64, "vocab_size": 100, "n_layers": 2}
NARROW = {"precision": "bf16", "weights": "bf16"}


def test_a_number_becomes_one_of_its_neighbours_and_is_their_mean() -> None:
    torch.manual_seed(0)
    values, draws = torch.randn(200), 4000
    drawn = torch.stack([rounded_at_random(values.clone()) for _ in range(draws)]).double()
    distance = 2 ** (values.double().abs().log2().floor() - 7)  # of neighbours, which have 8 significant bits
    assert ((drawn - values.double()).abs() < distance).all()
    spread = drawn.std(0) / draws**0.5
    assert ((drawn.mean(0) - values.double()).abs() < 5 * spread + 1e-12).all()
    exact = torch.randn(50).bfloat16()
    assert torch.equal(rounded_at_random(exact.float()), exact)


@pytest.mark.parametrize(("kind", "lr"), [(AdamW, 4e-4), (Muon, 2e-3)])
def test_many_small_updates_sum_to_those_in_fp32(kind: Any, lr: float) -> None:
    """Each is a tenth of the distance between neighbours, which rounding to the nearest would lose."""
    torch.manual_seed(0)
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False))
        net[0].weight.data = torch.ones(64, 64, dtype=dtype)
        optimizer = kind(lr=lr, weight_decay=0.0).build(net)
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(64, 64, generator=generator)
        for _ in range(100):
            net[0].weight.grad = (direction + 0.1 * torch.randn(64, 64, generator=generator)).to(dtype)
            optimizer.step()
        assert all(t.dtype == torch.float32 for state in optimizer.state.values() for t in state.values())
        ends.append(net[0].weight.detach().float() - 1)
    found, expected = ends[1].flatten(), ends[0].flatten()
    assert float((found @ expected) / (expected @ expected)) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("bits", [32, 8])
def test_it_learns_as_fast_as_in_fp32(kind: Any, bits: Any, tmp_path: Path, corpus: TokenCorpus) -> None:
    ends = []
    for weights in ("fp32", "bf16"):
        loop = trainer(tmp_path / weights, NARROW | {"weights": weights}, max_steps=60, log_every=20,
                       optimizer=kind(lr=3e-3, state_bits=bits), save_every=100)  # fmt: skip
        net = model(**WIDE)
        loop.fit(net, LanguageModeling(), stream(corpus))
        ends.append(rows(tmp_path / weights)[-1]["loss"])
        narrow = {name: p.dtype for name, p in net.named_parameters()}
        assert (narrow["embedding.weight"] == torch.bfloat16) == (weights == "bf16")
        assert narrow["final_norm.weight"] == torch.float32
    assert ends[1] == pytest.approx(ends[0], rel=0.02)
    assert ends[1] != ends[0]


@pytest.mark.parametrize("kind", [AdamW, Muon])
@pytest.mark.parametrize("bits", [32, 8])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    kind: Any, bits: Any, tmp_path: Path, corpus: TokenCorpus
) -> None:
    make = lambda: model(**WIDE)  # noqa: E731
    whole, resumed = whole_and_resumed(tmp_path, make, corpus, NARROW, kind(lr=3e-3, state_bits=bits))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed, whole, strict=True))


@pytest.mark.parametrize("other", [{"precision": "fp32"}, {"precision": "fp16"}, {"sharding": "optimizer"}])
def test_what_cannot_be_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"hardware\.weights='bf16'.* or hardware\."):
        Hardware(weights="bf16", **other)
