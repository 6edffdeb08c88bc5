"""Sweeps: the table at the end, a job that fails, a sweep that is interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from commands import Workplace, launch, read_rows
from records import read_page

CLOCKED = {"seconds", "tokens_per_second", "peak_memory_gb"}


def table(folder: Path) -> list[dict[str, Any]]:
    with (folder / "sweep.csv").open() as file:
        return [{k: v for k, v in row.items() if k not in CLOCKED} for row in csv.DictReader(file)]


def only_sweep(place: Workplace) -> Path:
    (found,) = place.outputs.glob("multirun/*/*/sweep.json")
    return found.parent


def test_a_failing_job_leaves_the_others_alone_and_is_run_again_alone(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    swept = ["-m", "trainer.max_steps=3", "model/gqa=mha,mqa", "model.head_dim=null,7"]
    done = place.run(*swept, check=False)
    assert done.returncode == 1
    folder = only_sweep(place)
    rows = table(folder)
    assert [row["job"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["model/gqa"] for row in rows] == ["mha", "mha", "mqa", "mqa"]
    assert [row["status"].split(":")[0] for row in rows] == ["finished", "failed", "finished", "failed"]
    assert rows[0]["validation_loss"] != rows[2]["validation_loss"]
    assert "| 1 " in (folder / "sweep.md").read_text()
    assert (folder / "curves.png").stat().st_size > 1000
    for number in (0, 2):
        metrics = json.loads((folder / str(number) / "result.json").read_text())["metrics"]
        assert float(rows[number]["validation_loss"]) == metrics["validation_loss"]
    before = {n: (folder / n / "result.json").stat().st_mtime_ns for n in ("0", "2")}
    again = place.run(*swept, "resume=auto", check=False)
    assert again.returncode == 1
    assert only_sweep(place) == folder
    assert {n: (folder / n / "result.json").stat().st_mtime_ns for n in before} == before
    assert "job 1 is refused (model/gqa=mha model.head_dim=7): model.head_dim=7" in again.stderr
    assert "job 1:" not in again.stderr
    assert "job 0:" not in again.stderr


def test_a_sweep_without_a_recipe_is_named_after_its_choices(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    words = place.words("-m", "trainer.max_steps=2", "model.use_attention_sinks=true,false")
    done = launch(*(word for word in words if not word.startswith("experiment=")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    folder = only_sweep(place)
    assert folder.name.endswith("_text_tiny")
    assert [row["model.use_attention_sinks"] for row in table(folder)] == ["True", "False"]


@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=devices", "hydra.launcher.jobs=2"]], ids=["one", "two"])
def test_an_interrupted_sweep_ends_as_one_that_was_left_alone(launcher: list[str], tmp_path: Path) -> None:
    swept = ["-m", "trainer.max_steps=150", "trainer.save_every=5", "trainer.eval_every=50", "seed=1,2"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone, place = Workplace(tmp_path / "a"), Workplace(tmp_path / "b")
    alone.run(*swept)
    # Ctrl-C in a terminal reaches the sweep and its job: the whole process group.
    sweep = place.start(*swept, *launcher)

    def second_job_is_under_way() -> bool:
        logs = list(place.outputs.glob("multirun/*/*/1/metrics.jsonl"))
        return bool(logs) and len(read_rows(logs[0].parent)) > 20

    sweep.wait_until(second_job_is_under_way)
    os.killpg(sweep.pid, signal.SIGINT)
    assert sweep.wait(120).returncode == 130
    assert "resume=auto" in sweep.stderr
    folder = only_sweep(place)
    stopped = [row["status"] for row in table(folder)]
    assert stopped[1] == "interrupted"
    before = (folder / "0" / "result.json").stat().st_mtime_ns if stopped[0] == "finished" else None
    assert launcher or before is not None
    resumed = place.run(*swept, *launcher, "resume=auto")
    assert ("job 1 starts on CPU" if launcher else "job 1:") in resumed.stderr
    assert before is None or (folder / "0" / "result.json").stat().st_mtime_ns == before
    assert table(folder) == table(only_sweep(alone))
    assert "Mean ± sample standard deviation over seeds" in (folder / "sweep.md").read_text()


def test_a_killed_search_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    searched = [
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.pruner_startup_trials=2",
        "trainer.optimizer.lr=tag(log,interval(1e-4,1e-1))", "trainer.max_steps=60", "trainer.save_every=5",
        "trainer.eval_every=20",
    ]  # fmt: skip
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone, place = Workplace(tmp_path / "a"), Workplace(tmp_path / "b")
    told = alone.run(*searched).stdout
    rows = table(only_sweep(alone))
    statuses = [row["status"] for row in rows]
    assert statuses[:2] == ["finished", "finished"]
    assert statuses[2].startswith("pruned: validation_loss ")
    losses = [float(row["validation_loss"]) for row in rows[:2]]
    best = losses.index(min(losses))
    assert f"job {best}, validation_loss {losses[best]:.6g}: trainer.optimizer.lr=" in told
    assert "lower is better; trials: 2 finished, 1 pruned" in read_page(only_sweep(alone) / "report.html").text
    stopped = read_rows(only_sweep(alone) / "2")
    assert stopped[-1]["step"] == 20
    assert not (only_sweep(alone) / "2" / "result.json").exists()

    killed = place.start(*searched)

    def second_trial_is_under_way() -> bool:
        logs = list(place.outputs.glob("multirun/*/*/1/metrics.jsonl"))
        return bool(logs) and len(read_rows(logs[0].parent)) > 25

    killed.wait_until(second_trial_is_under_way)
    killed.send(signal.SIGKILL)
    killed.wait(60)
    folder = only_sweep(place)
    finished = (folder / "0" / "result.json").stat().st_mtime_ns
    sittings = (folder / "1" / "sittings.jsonl").read_text().count("\n")
    place.run(*searched, "resume=auto")
    assert only_sweep(place) == folder
    assert (folder / "0" / "result.json").stat().st_mtime_ns == finished
    assert (folder / "1" / "sittings.jsonl").read_text().count("\n") == sittings + 1
    assert table(folder) == rows
    assert [read_rows(folder / str(n)) for n in range(3)] == [read_rows(only_sweep(alone) / str(n)) for n in range(3)]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["trainer.optimizer.lr=interval(1e-4,1e-1)"], "interval(1e-4,1e-1): is no list of values. Name them"),
        (["hydra/launcher=devices", "hydra.launcher.jobs=0", "seed=1,2"], "hydra.launcher.jobs=0: must be at least 1"),
        (["hydra/sweeper=optuna", "seed=3"], "no override is a search space"),
        (["hydra/sweeper=optuna", "hydra.sweeper.n_trials=0", "seed=range(1,4)"], "hydra.sweeper.n_trials=0: must be"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_it_has_a_folder(typed: list[str], told: str, tmp_path: Path) -> None:
    done = launch("-m", *typed, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert not list(tmp_path.iterdir())


def test_an_experiment_that_searches_is_told_of_its_sweeper(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    (tmp_path / "lab" / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {n_trials: 2, params: {seed: 'range(1,9)'}}}\n"
    (tmp_path / "lab" / "experiment" / "rate.yaml").write_text(recipe)
    typed = ["--config-dir=lab", "experiment=rate"]
    refused = launch(*typed, cwd=tmp_path)
    assert refused.returncode == 1
    assert "hydra.sweeper.n_trials=2: AblationSweeper has no such key" in refused.stderr
    assert "add hydra/sweeper=optuna to the command" in refused.stderr
    pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    small = [word for word in place.words("debug=default") if not word.startswith("experiment=")]
    done = launch(*typed, "hydra/sweeper=optuna", "trainer.max_steps=2", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [row["status"] for row in table(only_sweep(place))] == ["finished", "finished"]
