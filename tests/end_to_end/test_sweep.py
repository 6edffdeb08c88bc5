"""Sweeps: the table at the end, a job that fails, a sweep that is interrupted."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

from commands import Workplace, launch, read_rows

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


def test_an_interrupted_sweep_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    swept = ["-m", "trainer.max_steps=150", "trainer.save_every=5", "trainer.eval_every=50", "seed=1,2"]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone, place = Workplace(tmp_path / "a"), Workplace(tmp_path / "b")
    alone.run(*swept)
    # Ctrl-C in a terminal reaches the sweep and its job: the whole process group.
    sweep = place.start(*swept)

    def second_job_is_under_way() -> bool:
        logs = list(place.outputs.glob("multirun/*/*/1/metrics.jsonl"))
        return bool(logs) and len(read_rows(logs[0].parent)) > 20

    sweep.wait_until(second_job_is_under_way)
    os.killpg(sweep.pid, signal.SIGINT)
    assert sweep.wait(120).returncode == 130
    assert "resume=auto" in sweep.stderr
    folder = only_sweep(place)
    assert [row["status"] for row in table(folder)] == ["finished", "interrupted"]
    finished = (folder / "0" / "result.json").stat().st_mtime_ns
    resumed = place.run(*swept, "resume=auto")
    assert "job 1:" in resumed.stderr
    assert (folder / "0" / "result.json").stat().st_mtime_ns == finished
    assert table(folder) == table(only_sweep(alone))
    assert "Mean ± sample standard deviation over seeds" in (folder / "sweep.md").read_text()
