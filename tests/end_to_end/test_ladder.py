"""`task=ladder`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import SMALL, launch
from safetensors.torch import load_file

SIZES = {"a": 16, "b": 24, "c": 32}


def _words(folder: Path, *more: str) -> list[str]:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join(f"{i} times {i} is {i * i}, and line {i} is done." for i in range(200)))
    own = [o for o in SMALL if not o.startswith(("hardware", "model.d_model"))] + [f"task.data.train=[{text}]"]
    quoted = ",".join(f'"{o}"' for o in [*own, "model.n_layers=1", "model.n_heads=2"])
    sizes = [f'task.sizes.{name}=["model.d_model={width}"]' for name, width in SIZES.items()]
    places = [f"paths.outputs={folder / 'outputs'}", f"paths.cache={folder / 'cache'}"]
    machine = [o for o in SMALL if o.startswith("hardware")]
    return ["task=ladder", f"task.baseline=[{quoted}]", *machine, *sizes, *places, *more]


def test_a_ladder_predicts_its_largest_size_and_branches_are_runs_of_their_own_length(tmp_path: Path) -> None:
    words = _words(tmp_path, "task.horizons=[640,1280,1920]", "task.resamples=20", "hydra/launcher=devices",
                   "hydra.launcher.jobs=2")  # fmt: skip
    done = launch(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/*_ladder")
    metrics = json.loads((folder / "result.json").read_text())["metrics"]
    state = json.loads((folder / "ladder.json").read_text())
    runs, branches = (json.loads((folder / what / "sweep.json").read_text())["jobs"] for what in ("runs", "branches"))
    assert (len(runs), len(branches)) == (3, 6)
    assert "model.d_model=32" in runs[-1], "the largest comes last"
    measured = [
        json.loads(path.read_text())["metrics"]["validation_loss"]
        for path in (folder / "branches" / "4" / "result.json", folder / "branches" / "5" / "result.json",
                     folder / "runs" / "2" / "result.json")
    ]  # fmt: skip
    errors = [abs(value - row["predicted"]) for value, row in zip(measured, state["predicted"], strict=True)]
    assert metrics["prediction_error"] == pytest.approx(sum(errors) / 3)
    told = done.stderr.index("predicted: c after")
    assert told < done.stderr.rindex("runs: 1 of 1 runs"), "predicted before it was trained"
    assert "Predicted and measured" in (folder / "report.html").read_text()

    # The same branch as a run from its own beginning.
    alone = launch(*branches[0], f"hydra.run.dir={tmp_path / 'alone'}", cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    one, other = (load_file(next((place / "checkpoints").glob("step_00000010/model.safetensors")))
                  for place in (folder / "branches" / "0", tmp_path / "alone"))  # fmt: skip
    assert {*one} == {*other}
    assert all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task.horizons=[640,960]"], "must be multiples of the first"),
        (["task.horizons=[640]"], "must be two or more, ascending"),
        (["task.horizons=[640,1280]"], "give 4 runs, and a law takes 6"),
        (["task.branching=[]"], "depends on how long a run is"),
        (['task.sizes.d=["model.d_model=25"]'], "task.sizes.d"),
        (["~task.sizes.a"], "fewer than three"),
    ],
)
def test_what_gives_no_law_is_told_before_the_first_run(tmp_path: Path, more: list[str], message: str) -> None:
    done = launch(*_words(tmp_path, *more), cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
    assert not list((tmp_path / "outputs").glob("*/*/*/sweep.json"))
