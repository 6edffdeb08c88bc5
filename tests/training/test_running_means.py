"""Running means in 8 bits: what the codes stand for, what is lost, and runs that are resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import model, rows, stream, trainer, whole_and_resumed

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.optimization.running_means import BLOCK, EightBitMeans, dynamic_map

WIDE = {"d_model": 64, "vocab_size": 100, "n_layers": 2}


@pytest.mark.parametrize("signed", [True, False])
def test_the_codes_are_256_numbers_spread_evenly_over_each_of_seven_orders(signed: bool) -> None:
    values = dynamic_map(signed)
    assert len(values.unique()) == 256
    assert values.tolist() == sorted(values.tolist())
    for order in range(7):
        high = 10.0 ** (order - 6)
        inside = values[(values > 0.1 * high) & (values < high)]
        count = 2**order if signed else 2 ** (order + 1)
        expected = [high * (0.1 + 0.9 * (k + 0.5) / count) for k in range(count)]
        assert inside.tolist() == pytest.approx(expected, rel=1e-5)
    assert (values < 0).sum() == (127 if signed else 0)


@pytest.mark.parametrize("name", ["momentum", "exp_avg_sq"])
def test_what_is_read_is_the_nearest_of_the_numbers_in_its_block(name: str) -> None:
    torch.manual_seed(0)
    means, state = EightBitMeans(), dict[str, Any]()
    shape = (70, 73)  # the last block is not full
    value = torch.randn(shape) * torch.logspace(-8, 0, 73)
    value = value.square() if name == "exp_avg_sq" else value
    means.begin(state, name, value)
    assert not means.read(state, name).any()
    means.write(state, name, value)
    assert state[name].dtype == torch.uint8
    kept, found = value.flatten(), means.read(state, name).flatten()
    if name == "exp_avg_sq":
        kept, found = kept.sqrt(), found.sqrt()
        assert (found[kept > 0] > 0).all()
    for start in range(0, len(kept), BLOCK):
        mine, theirs = found[start : start + BLOCK], kept[start : start + BLOCK]
        choices = dynamic_map(name == "momentum") * theirs.abs().max()
        if name == "exp_avg_sq":
            choices = choices[choices > 0]
        nearest = choices[(theirs[:, None] - choices).abs().argmin(1)]
        torch.testing.assert_close((mine - theirs).abs(), (nearest - theirs).abs(), rtol=1e-4, atol=1e-12)


def test_blocks_of_nothing_and_small_parameters_stay_exact() -> None:
    means, state = EightBitMeans(), dict[str, Any]()
    means.begin(state, "exp_avg", torch.zeros(64, 64))
    means.write(state, "exp_avg", torch.zeros(64, 64))
    assert not means.read(state, "exp_avg").any()
    small, value = dict[str, Any](), torch.randn(9)
    means.begin(small, "exp_avg", value)
    means.read(small, "exp_avg").copy_(value)
    assert torch.equal(means.read(small, "exp_avg"), value)


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_it_learns_as_fast_as_in_32_bits(kind: Any, tmp_path: Path, corpus: TokenCorpus) -> None:
    ends = []
    for bits in (32, 8):
        loop = trainer(tmp_path / str(bits), max_steps=60, log_every=20, optimizer=kind(lr=3e-3, state_bits=bits),
                       save_every=100)  # fmt: skip
        loop.fit(model(**WIDE), LanguageModeling(), stream(corpus))
        ends.append(rows(tmp_path / str(bits))[-1]["loss"])
        bytes_of = sum(t.numel() * t.element_size() for s in loop.optimizer.state.values() for t in s.values())
        parameters = sum(p.numel() for p in loop.model.parameters())
        if bits == 8:
            assert bytes_of < 2.2 * parameters
    assert ends[1] == pytest.approx(ends[0], rel=0.01)
    assert ends[1] != ends[0]


@pytest.mark.parametrize("kind", [AdamW, Muon])
def test_a_resumed_run_is_the_run_that_was_never_stopped(kind: Any, tmp_path: Path, corpus: TokenCorpus) -> None:
    make = lambda: model(**WIDE)  # noqa: E731
    whole, resumed = whole_and_resumed(tmp_path, make, corpus, {}, kind(lr=3e-3, state_bits=8))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(resumed, whole, strict=True))
