"""An ensemble against the probabilities of its members, written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import Workplace, launch

from modern_llm.data.text.sources import TextFiles
from modern_llm.data.text.tokens import tokenise
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.loading import load_model
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun
from modern_llm.tasks.ensemble import Ensemble
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware

CPU = Hardware(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Three runs of different seeds."""
    place = Workplace(tmp_path_factory.mktemp("place"))
    for seed in range(3):
        place.run("trainer.max_steps=6", f"seed={seed}", f"name=seed{seed}")
    return place


def task(place: Workplace, count: int = 3, **settings: object) -> Ensemble:
    runs = [str(next(place.outputs.rglob(f"*seed{seed}"))) for seed in range(count)]
    paths = Paths(str(place.outputs), str(place.folder / "cache"), None)
    return Ensemble(runs, CPU, paths, TextFiles(train=[str(place.folder / "text.txt")]), **settings)  # type: ignore[arg-type]


@torch.no_grad()
def test_the_mean_of_probabilities_is_what_is_scored(place: Workplace, tmp_path: Path) -> None:
    ensemble = task(place)
    metrics = ensemble.run(RunFolder(tmp_path, {}))
    loaded = [
        load_model(ModelFromRun(path, FullFinetuning()), Runtime(CPU), None, [], False) for path in ensemble.models
    ]
    corpus = tokenise(ensemble.data, "validation", loaded[0].tokenizer, ensemble.paths.cache_folder)
    ids, length = torch.from_numpy(corpus.ids.astype("int64")), loaded[0].context
    assert length is not None
    nats, alone, count = 0.0, 0.0, 0
    for start in range(0, len(ids) - 1, length):
        inputs, labels = ids[start : min(start + length, len(ids) - 1)], ids[start + 1 : start + 1 + length]
        chances = torch.stack([m.decoder.eval()(inputs[None]).logits[0].double().softmax(-1) for m in loaded])  # type: ignore[operator]
        picked = chances[:, torch.arange(len(labels)), labels][:, labels != corpus.eos_id]  # (models, tokens)
        nats -= float(picked.mean(0).log().sum())
        alone -= float(picked.log().mean(0).sum())
        count += picked.shape[1]
    assert metrics["ensemble_loss"] == pytest.approx(nats / count, rel=1e-5)
    assert metrics["mean_loss"] == pytest.approx(alone / count, rel=1e-5)
    assert metrics["ensemble_loss"] < metrics["mean_loss"]
    assert (tmp_path / "report.html").exists()


def test_one_model_twice_is_that_model(place: Workplace, tmp_path: Path) -> None:
    run = task(place).models[0]
    paths = Paths(str(place.outputs), str(place.folder / "cache"), None)
    twice = Ensemble([run, run], CPU, paths, TextFiles(train=[str(place.folder / "text.txt")]))
    metrics = twice.run(RunFolder(tmp_path, {}))
    assert metrics["ensemble_loss"] == pytest.approx(metrics["mean_loss"], abs=1e-9)


def test_one_model_is_no_ensemble(place: Workplace) -> None:
    with pytest.raises(ValueError, match=r"task\.models="):
        task(place, count=1)


def test_by_command(place: Workplace) -> None:
    runs, text = ",".join(task(place).models), place.folder / "text.txt"
    own = [f"paths.outputs={place.outputs}", f"paths.cache={place.folder}/cache", "hardware=cpu"]
    told = launch("task=ensemble", f"task.models=[{runs}]", "task/data=text_files", f"task.data.train=[{text}]", *own)
    assert told.returncode == 0, told.stderr
    assert "ensemble_loss: " in told.stdout
