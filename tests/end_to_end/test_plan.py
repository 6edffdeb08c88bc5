"""Plans as a person runs them: order, failures, what is done again and what is not."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from commands import ROOT, Command, launch
from hydra import initialize_config_dir
from records import composed, language_model, read_page, training_rows, write_run

from modern_llm.config.instantiate import ConfigError, build
from modern_llm.locks import hold


def plan(folder: Path, steps: dict[str, object], *more: str, name: str = "tried") -> Command:
    """Steps that only read records, so that each takes a moment."""
    described = json.dumps(steps).replace('"overrides"', "overrides").replace('"needs"', "needs")
    for step in steps:
        described = described.replace(f'"{step}":', f"{step}:")
    outputs = f"paths.outputs={folder / 'outputs'}"
    return launch("task=plan", f"task.steps={described}", f"name={name}", outputs, *more, cwd=folder)


def report(folder: Path, title: str, **more: object) -> dict[str, object]:
    return {"overrides": ["task=report", f"task.runs=[{folder}/run]", f"task.title={title}"], **more}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", composed(), training_rows(20), language_model(5.0))
    return tmp_path


def ended(folder: Path) -> dict[str, str]:
    newest = max(folder.glob("outputs/2*/*_tried/result.json"), key=lambda p: p.stat().st_mtime_ns)
    return json.loads(newest.read_text())["steps"]


def test_a_failed_step_leaves_the_others_standing_and_nothing_is_done_twice(folder: Path) -> None:
    steps = {
        "last": report(folder, "last", needs=["first"]),
        "bad": {"overrides": ["task=report", "task.runs=[nowhere]"]},
        "behind": report(folder, "{bad}"),
        "first": report(folder, "first"),
    }
    done = plan(folder, steps)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "/4 " in line]
    assert [line.split("/4 ")[1].split()[0] for line in said] == ["bad", "behind", "first", "last"]
    outcome = ended(folder)
    assert outcome["first"] == outcome["last"] == "finished"
    assert outcome["bad"].startswith("failed: ")
    assert outcome["behind"] == "skipped: it needs bad"
    base = folder / "outputs" / "plans" / "tried"
    assert "no run is found" in (base / "bad" / "failure.txt").read_text()
    assert done.stderr.index("bad is refused: task.runs=['nowhere']") < done.stderr.index("first  finished")
    assert not (base / "behind").exists()
    page = read_page(max(folder.glob("outputs/2*/*_tried/report.html")))
    assert "behind: skipped: it needs bad" in page.text
    assert {row["step"] for row in page.table("runs")} == {"first", "last", "bad"}

    before = (base / "first" / "result.json").stat().st_mtime_ns
    steps["bad"] = report(folder, "mended")
    (folder / "hub" / "datasets").mkdir(parents=True)  # where data are looked for makes no other run
    again = plan(folder, steps, f"paths.mirror={folder / 'hub'}")
    assert again.returncode == 0, again.stderr
    assert "first  finished before" in again.stderr
    assert "last  finished before" in again.stderr
    assert (base / "first" / "result.json").stat().st_mtime_ns == before
    assert set(ended(folder).values()) == {"finished"}

    hold(base)
    refused = plan(folder, steps)
    assert refused.returncode == 1
    assert f"a run is going there (process {os.getpid()} on {socket.gethostname()})" in refused.stderr


def test_a_changed_step_is_done_again_with_all_that_need_it_and_its_run_is_kept(folder: Path) -> None:
    steps = {
        "one": report(folder, "one"),
        "two": report(folder, "two", needs=["one"]),
        "three": report(folder, "three"),
    }
    assert plan(folder, steps).returncode == 0
    steps["one"] = report(folder, "other")
    done = plan(folder, steps)
    assert done.returncode == 0, done.stderr
    assert "one: task.title changed; the run of before is kept as one.before_1" in done.stderr
    assert "two: one was done again; the run of before" in done.stderr
    assert "three  finished before" in done.stderr
    base = folder / "outputs" / "plans" / "tried"
    assert "title: one" in (base / "one.before_1" / "config.yaml").read_text()
    assert "title: other" in (base / "one" / "config.yaml").read_text()

    # Stopped between the two, it is as if it had not been: the record of `one` is younger than that of `two`.
    line = json.loads((base / "one" / "sittings.jsonl").read_text())
    (base / "one" / "sittings.jsonl").write_text(json.dumps(line | {"time": "2999-01-01T00:00:00+0000"}) + "\n")
    done = plan(folder, steps)
    assert "one  finished before" in done.stderr
    assert "two: one was done again; the run of before is kept as two.before_2" in done.stderr


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ("{a: {overrides: [], needs: [b]}, b: {overrides: ['task.title={a}']}}", r"need each other in a circle"),
        ("{a: {overrides: ['task.path={nothing}']}}", r"task\.steps\.a\.needs='nothing': is no step"),
        ("{a: {override: []}}", r"task\.steps\.a=.*must have overrides"),
        ("{}", r"task\.steps=\{\}: names no step"),
    ],
)
def test_impossible_plans_are_refused_before_anything_runs(steps: str, message: str) -> None:
    from hydra import compose

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", ["task=plan", f"task.steps={steps}", "name=x"])
        with pytest.raises(ConfigError, match=message):
            build(config.task)


PLANS = sorted(p.stem for p in (ROOT / "conf" / "experiment").glob("*.yaml") if "/task: plan" in p.read_text())


@pytest.mark.parametrize("name", PLANS)
def test_every_step_of_every_plan_composes(name: str, tmp_path: Path) -> None:
    """Each is what could be typed: its groups and keys are there."""
    from hydra import compose

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [f"experiment={name}", "name=x"])
        task = build(config.task)
        for step in task.steps:
            overrides = [
                o.format_map({s: tmp_path / s for s in (*task.steps, "folder")}) for o in task.steps[step]["overrides"]
            ]
            compose("config", [*task.common, *overrides, "name=x"])


@pytest.mark.slow
def test_the_smoke_test_runs_everything_without_a_network(tmp_path: Path) -> None:
    own = [f"paths.outputs={tmp_path}", f"paths.cache={tmp_path / 'cache'}", "paths.mirror=null"]
    done = launch("experiment=smoke", *own, "hardware=cpu", "hardware.num_threads=1", cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = tmp_path.glob("2*/*_smoke/result.json")
    assert set(json.loads(result.read_text())["steps"].values()) == {"finished"}
    assert len(read_page(result.with_name("report.html")).table("runs")) == 11
