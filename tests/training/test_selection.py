"""Which checkpoint is the best, and that a resumed or lengthened run knows it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from loops import Evaluations, model, rows, stream, trainer

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.models import MoEConfig
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.callbacks import Callback


class StopAt(Callback):
    """Fails behind a step whose checkpoint is written."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int, loss: float) -> None:
        if step == self.step + 1:
            raise KeyError(step)


def evaluated(folder: Path, metric: str = "validation_loss") -> list[tuple[int, float]]:
    return [(row["step"], row[metric]) for row in rows(folder) if metric in row]


@pytest.mark.parametrize("intervals", [(2, 2), (2, 3), (2, 5), (None, None), (4, 3)])
def test_a_lengthened_run_keeps_its_best_checkpoint(
    tmp_path: Path, corpus: TokenCorpus, intervals: tuple[int | None, int | None]
) -> None:
    """The last evaluation of the shorter run was the best; it is done behind the last checkpoint."""
    first = {"max_steps": 8, "eval_every": intervals[0], "keep_checkpoints": 1}
    values = iter([3.0 - 0.1 * i for i in range(20)])
    result = trainer(tmp_path, **first).fit(model(), LanguageModeling(), stream(corpus), Evaluations(list(values)))
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == "step_00000008"
    before = evaluated(tmp_path)
    assert before[-1][0] == 8
    second = {"max_steps": 15, "eval_every": intervals[1], "keep_checkpoints": 1}
    result = trainer(tmp_path, **second).fit(model(1), LanguageModeling(), stream(corpus), Evaluations([9.0] * 20))
    assert result.step == 15
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == "step_00000008"
    assert (result.best_checkpoint / "model.safetensors").is_file()
    assert evaluated(tmp_path)[: len(before)] == before


def test_an_evaluation_is_not_done_twice(tmp_path: Path, corpus: TokenCorpus) -> None:
    settings = {"max_steps": 4, "eval_every": 2}
    trainer(tmp_path, **settings).fit(model(), LanguageModeling(), stream(corpus), Evaluations([2.0, 1.0]))
    again = trainer(tmp_path, **settings).fit(model(), LanguageModeling(), stream(corpus), Evaluations([]))
    assert again.best_checkpoint is not None
    assert again.best_checkpoint.name == "step_00000004"
    assert evaluated(tmp_path) == [(2, 2.0), (4, 1.0)]


def test_patience_is_remembered_over_a_resume(tmp_path: Path, corpus: TokenCorpus) -> None:
    settings = {"eval_every": 2, "early_stopping_patience": 2}
    first = Evaluations([1.0, 2.0])
    trainer(tmp_path, max_steps=4, **settings).fit(model(), LanguageModeling(), stream(corpus), first)
    result = trainer(tmp_path, max_steps=20, **settings).fit(
        model(), LanguageModeling(), stream(corpus), Evaluations([2.0])
    )
    assert result.stopped_early
    assert result.step == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_the_best(tmp_path: Path, corpus: TokenCorpus, bad: float) -> None:
    loop = trainer(tmp_path, max_steps=8, eval_every=2)
    result = loop.fit(model(), LanguageModeling(), stream(corpus), Evaluations([bad, 3.0, bad, 4.0]))
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == "step_00000004"
    nothing = trainer(tmp_path / "b", max_steps=4, eval_every=2, early_stopping_patience=2)
    result = nothing.fit(model(), LanguageModeling(), stream(corpus), Evaluations([bad, bad]))
    assert result.best_checkpoint is None


@pytest.mark.parametrize(("direction", "best"), [("lower", 2), ("higher", 4)])
def test_the_monitored_metric_says_which_way_is_better(
    tmp_path: Path, corpus: TokenCorpus, direction: str, best: int
) -> None:
    evaluator = Evaluations([0.2, 0.7, 0.5], {"validation_loss": "lower", "accuracy": direction})  # type: ignore[dict-item]
    loop = trainer(tmp_path, monitor="accuracy", eval_every=2)
    result = loop.fit(model(), LanguageModeling(), stream(corpus), evaluator)
    assert result.best_checkpoint is not None
    assert result.best_checkpoint.name == f"step_{best:08d}"


def test_logged_metrics_are_means_over_the_steps_since_the_last_row(tmp_path: Path, corpus: TokenCorpus) -> None:
    """As the loss beside them is: seen by logging every step, and every third one, resumed between two rows."""
    moe = MoEConfig(4, 2, balance_loss_weight=0.1)
    trainer(tmp_path / "each", max_steps=6).fit(model(moe=moe), LanguageModeling(), stream(corpus))
    for steps in (4, 6):
        loop = trainer(tmp_path / "third", max_steps=6, log_every=3, save_every=4)
        if steps == 4:
            loop.callbacks = [StopAt(4)]
            with pytest.raises(KeyError):
                loop.fit(model(moe=moe), LanguageModeling(), stream(corpus))
        else:
            loop.fit(model(moe=moe), LanguageModeling(), stream(corpus))
    each, third = rows(tmp_path / "each"), rows(tmp_path / "third")
    for name in ("loss", "balance_loss", "z_loss", "busiest_expert_load"):
        for row, part in zip(third, (each[:3], each[3:]), strict=True):
            assert row[name] == pytest.approx(sum(r[name] for r in part) / 3)
