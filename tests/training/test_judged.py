"""Steps that are launched before the host knows whether they may be taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import model, rows, stream, trainer

from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.base import Batch, LossOutput
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.optimization.optimizers import AdamW, Muon, OptimizerSettings
from modern_llm.training.runtime import Runtime

OPTIMIZERS: dict[str, OptimizerSettings] = {
    "AdamW": AdamW(weight_decay=0.1),
    "Muon": Muon(weight_decay=0.1, cautious_decay=False, variance_decay=None, polynomial="quintic"),
    "NorMuon": Muon(weight_decay=0.1, cautious_decay=True, variance_decay=0.95, polynomial="polar_express"),
}
BAD = {"nan": math.nan, "inf": math.inf, "fine": 1.0}


class _Spoilt(LanguageModeling):
    """Whose loss in some passes is multiplied by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.passes = factor, 0

    def __call__(self, model: Any, batch: Batch) -> LossOutput:
        output = super().__call__(model, batch)
        self.passes += 1
        output.loss_sum = output.loss_sum * (self.factor if self.passes in (1, 4) else 1.0)
        return output


@pytest.mark.parametrize("factor", BAD.values(), ids=BAD)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_what_the_device_judges_is_what_the_host_judges(
    tmp_path: Path, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch, optimizer: OptimizerSettings, factor: float
) -> None:
    found = {}
    for ahead in (False, True):
        monkeypatch.setattr(Runtime, "runs_ahead", ahead)
        net, folder = model(), tmp_path / str(ahead)
        folder.mkdir()
        loop = trainer(folder, optimizer=optimizer, max_steps=7)
        loop.fit(net, _Spoilt(factor), stream(corpus))
        assert loop.judged_there == ahead
        assert not hasattr(loop.optimizer, "found_inf")
        state = [value for of in loop.optimizer.state_dict()["state"].values() for value in of.values()]
        found[ahead] = [p.detach() for p in net.parameters()], state
        assert rows(folder)[-1]["skipped_steps"] == (0 if factor == 1 else 2)
    torch.testing.assert_close(found[True], found[False], rtol=1e-5, atol=1e-7)
    assert all(t.isfinite().all() for t in [*found[True][0], *found[True][1]])


@pytest.mark.parametrize(
    "settings", [{"spike_factor": 3.0}, {"optimizer": AdamW(state_bits=8)}, {"optimizer": Muon(state_bits=8)}], ids=str
)
def test_the_host_judges_what_no_device_can(
    tmp_path: Path, corpus: TokenCorpus, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(Runtime, "runs_ahead", True)
    loop = trainer(tmp_path, **settings)
    loop.fit(model(), _Spoilt(math.nan), stream(corpus))
    assert not loop.judged_there
    assert rows(tmp_path)[-1]["skipped_steps"] == 2
