"""Runs that end by steps, tokens or minutes, and the schedules that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Evaluations, Ragged, model, rows, stream, trainer

from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.ramp import Ramp
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.budget import Budget
from modern_llm.training.optimization.schedules import Cosine, Linear
from modern_llm.training.settings import TrainerSettings

TOKENS = 4 * 16  # of a batch


def test_what_is_reached_first_ends_the_run() -> None:
    budget = Budget(max_steps=10, max_tokens=1000, max_minutes=0.5)
    assert not budget.is_spent(9, 999, 29.9)
    assert budget.is_spent(10, 0, 0)
    assert budget.is_spent(0, 1000, 0)
    assert budget.is_spent(0, 0, 30)
    assert budget.length(5, 1, 1) == 10
    assert budget.length(5, 1000, 1) == 5
    assert budget.length(5, 625, 1) == 8
    assert budget.length(5, 1, 25) == 6


def test_tokens_are_as_good_as_the_steps_they_give(tmp_path: Path, corpus: TokenCorpus) -> None:
    """Same weights, rates, checkpoint and evaluation as the run of as many steps."""
    outcomes, results = [], []
    for name, budget in (("steps", {"max_steps": 8}), ("tokens", {"max_steps": None, "max_tokens": 8 * TOKENS})):
        net = model(dropout=0.1)
        loop = trainer(tmp_path / name, schedule=Cosine(0.25), eval_every=3, **budget)
        results.append(loop.fit(net, LanguageModeling(), stream(corpus), Evaluations([3.0, 2.0, 1.0])))
        outcomes.append(list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))
    assert [result.step for result in results] == [8, 8]
    assert [result.best_checkpoint.name for result in results if result.best_checkpoint] == ["step_00000008"] * 2
    assert [row.get("lr") for row in rows(tmp_path / "tokens")] == [row.get("lr") for row in rows(tmp_path / "steps")]


def test_a_run_by_tokens_is_resumed_exactly(tmp_path: Path, corpus: TokenCorpus) -> None:
    budget = {"max_steps": None, "max_tokens": 8 * TOKENS, "save_every": 3, "keep_checkpoints": 9}
    whole = model(dropout=0.2)
    trainer(tmp_path, **budget).fit(whole, LanguageModeling(), stream(corpus))
    for late in ("step_00000008", "step_00000006"):
        (tmp_path / "checkpoints" / late / "model.safetensors").unlink()
    again = model(seed=4, dropout=0.2)
    with pytest.warns(UserWarning, match="step_00000003 is used"):
        result = trainer(tmp_path, **budget).fit(again, LanguageModeling(), stream(corpus))
    assert result.step == 8
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("budget", [{"max_steps": 12}, {"max_steps": None, "max_tokens": 8 * TOKENS}])
def test_a_ramp_and_shuffled_documents_are_resumed_exactly(
    tmp_path: Path, corpus: TokenCorpus, budget: dict[str, Any]
) -> None:
    def data() -> PackedStream:
        return PackedStream(corpus, 16, 4, seed=0, shuffle_documents=True, ramp=Ramp(1, 4, 0.6))

    settings = {**budget, "eval_every": 100, "save_every": 3, "keep_checkpoints": 9}
    whole = model()
    last = trainer(tmp_path, **settings).fit(whole, LanguageModeling(), data())
    for checkpoint in sorted((tmp_path / "checkpoints").glob("step_*"))[2:]:
        (checkpoint / "model.safetensors").unlink()
    again = model(seed=4)
    with pytest.warns(UserWarning, match="step_00000006 is used"):
        result = trainer(tmp_path, **settings).fit(again, LanguageModeling(), data())
    assert (result.step, result.tokens) == (last.step, last.tokens)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_batches_of_unequal_size_end_where_the_tokens_do(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Growing(Ragged):
        def __next__(self) -> dict[str, torch.Tensor]:
            batch = super().__next__()
            return batch | {"lengths": torch.full((4,), self.position % 5 + 1)}

    loop = trainer(tmp_path, max_steps=None, max_tokens=50, schedule=Linear(0.0, 0.0))
    data = Growing(corpus, 16, 4, seed=0)
    result = loop.fit(model(), LanguageModeling(), data)
    assert result.tokens >= 50 > result.tokens - 4 * 5
    rates = [row["lr"] for row in rows(tmp_path)]
    assert rates[-1] < 0.5 * max(rates)
    assert result.last_checkpoint is not None
    assert result.last_checkpoint.name == f"step_{result.step:08d}"


def test_minutes_end_a_run_with_its_last_evaluation(tmp_path: Path, corpus: TokenCorpus) -> None:
    loop = trainer(tmp_path, max_steps=None, max_minutes=1e-9, eval_every=1000)
    result = loop.fit(model(), LanguageModeling(), stream(corpus), Evaluations([1.5]))
    assert result.step == 1
    assert [row["step"] for row in rows(tmp_path) if "validation_loss" in row] == [1]
    assert loop.optimizer.param_groups[0]["lr"] > 0


def test_a_run_needs_an_end_and_an_interval() -> None:
    with pytest.raises(ValueError, match=r"trainer\.max_steps=None.*without an end"):
        TrainerSettings(max_steps=None)
    with pytest.raises(ValueError, match=r"trainer\.eval_every"):
        TrainerSettings(max_steps=None, max_tokens=10)
    for key in ("max_tokens", "max_minutes"):
        with pytest.raises(ValueError, match=rf"trainer\.{key}"):
            TrainerSettings(**{key: 0})
