"""Averages of the weights against their formulas, and what evaluations and checkpoints make of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loops import model, stream, trainer

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.evaluation.metrics.registry import Direction
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.callbacks import Callback
from modern_llm.training.checkpoint import load_model_tensors
from modern_llm.training.optimization.averages import EMA, Average, TailMean

AVERAGES = {"ema": EMA(start=0.2, decay=0.7), "tail": TailMean(start=0.4, every=2)}


class History(Callback):
    """The weights behind every step."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net
        self.weights: list[torch.Tensor] = []

    def on_step(self, step: int, loss: float) -> None:
        self.weights.append(self.net.final_norm.weight.detach().clone())  # type: ignore[union-attr,operator]


class StoppedError(Exception):
    """As if the machine had gone away."""


class Stopping(Callback):
    """Ends a run behind a step."""

    def __init__(self, last: int) -> None:
        self.last = last

    def on_step(self, step: int, loss: float) -> None:
        if step == self.last:
            raise StoppedError


class Seen:
    """What an evaluation finds in the model."""

    metrics: dict[str, Direction] = {"validation_loss": "lower"}  # noqa: RUF012

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []

    def __call__(self, net: Any) -> dict[str, float]:
        self.weights.append(net.final_norm.weight.detach().clone())
        return {"validation_loss": 1.0 - len(self.weights)}


def by_hand(average: Average, weights: list[torch.Tensor], steps: int) -> torch.Tensor:
    """The average behind the last of `weights`, of a run of `steps`."""
    chosen = [(i + 1, w) for i, w in enumerate(weights) if i / (steps - 1) >= average.start]
    if isinstance(average, TailMean):
        return torch.stack([w for step, w in chosen if step % average.every == 0]).mean(0)
    assert isinstance(average, EMA)
    mean = chosen[0][1]
    for n, (_, w) in enumerate(chosen[1:], start=1):
        decay = min(average.decay, (1 + n) / (10 + n))
        mean = decay * mean + (1 - decay) * w
    return mean


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_evaluations_checkpoints_and_the_end_hold_the_average(
    tmp_path: Path, corpus: TokenCorpus, average: Average
) -> None:
    net, seen = model(), Seen()
    history = History(net)
    loop = trainer(tmp_path, max_steps=12, eval_every=6, average=average)
    loop.callbacks = [history]
    result = loop.fit(net, LanguageModeling(), stream(corpus), seen)
    plain = model()
    bare = History(plain)
    loop = trainer(tmp_path / "plain", max_steps=12, eval_every=6)
    loop.callbacks = [bare]
    loop.fit(plain, LanguageModeling(), stream(corpus), Seen())
    assert all(
        torch.equal(a, b) for a, b in zip(history.weights, bare.weights, strict=True)
    )  # training goes on as ever
    for found, step in zip(seen.weights, (6, 12), strict=True):
        torch.testing.assert_close(found, by_hand(average, history.weights[:step], 12))
    torch.testing.assert_close(net.final_norm.weight.detach(), seen.weights[-1])
    assert not torch.equal(net.final_norm.weight, history.weights[-1])
    kept = model(seed=5)
    assert result.last_checkpoint is not None
    load_model_tensors(kept, result.last_checkpoint)
    assert torch.equal(kept.final_norm.weight, net.final_norm.weight)


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
@pytest.mark.parametrize("stop", [2, 7])
def test_a_resumed_run_is_that_of_one_sitting(tmp_path: Path, corpus: TokenCorpus, average: Average, stop: int) -> None:
    settings = {"max_steps": 12, "save_every": stop, "average": average}
    whole = model()
    trainer(tmp_path / "whole", **settings).fit(whole, LanguageModeling(), stream(corpus))
    first = trainer(tmp_path / "cut", **settings)
    first.callbacks = [Stopping(stop + 1)]
    with pytest.raises(StoppedError):
        first.fit(model(), LanguageModeling(), stream(corpus))
    resumed = model(seed=9)
    trainer(tmp_path / "cut", **settings).fit(resumed, LanguageModeling(), stream(corpus))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_averaging_may_be_switched_off_on_resume(tmp_path: Path, corpus: TokenCorpus) -> None:
    """The weights themselves go on, as if there had been no average."""
    plain = model()
    trainer(tmp_path / "plain", max_steps=8).fit(plain, LanguageModeling(), stream(corpus))
    averaged = trainer(tmp_path / "run", max_steps=8, save_every=4, average=EMA(0.0, 0.5))
    averaged.callbacks = [Stopping(5)]
    with pytest.raises(StoppedError):
        averaged.fit(model(), LanguageModeling(), stream(corpus))
    resumed = model(seed=9)
    trainer(tmp_path / "run", max_steps=8).fit(resumed, LanguageModeling(), stream(corpus))
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "settings", "key"),
    [(EMA, {"decay": 1.0}, "decay"), (EMA, {"start": 1.0}, "start"), (TailMean, {"every": 0}, "every")],
)
def test_an_impossible_average_is_refused_by_its_key(kind: Any, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.average\.{key}="):
        kind(**settings)
