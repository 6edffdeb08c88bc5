"""`task=ablation`, as it is typed."""

from __future__ import annotations

import json
import signal
import statistics
from pathlib import Path

import pytest
from commands import SMALL, Command, launch

from modern_llm.reporting.record import is_complete

# A run of a few steps on a short text: seconds.
BASE = [*SMALL, "model.d_model=16", "model.n_layers=1"]
ARM = 'task.arms.sinks=["model.use_attention_sinks=true"]'


def _words(folder: Path, *more: str, baseline: tuple[str, ...] = ()) -> list[str]:
    text = folder / "text.txt"
    if not text.exists():
        text.write_text("\n".join(f"{i} times {i} is {i * i}, and line {i} is done." for i in range(200)))
    own = [o for o in BASE if not o.startswith("hardware")] + [f"task.data.train=[{text}]", *baseline]
    quoted = ",".join(f'"{o}"' for o in own)
    machine = [o for o in BASE if o.startswith("hardware")]
    places = [f"paths.outputs={folder / 'outputs'}", f"paths.cache={folder / 'cache'}"]
    return ["task=ablation", f"task.baseline=[{quoted}]", *machine, *places, *more]


def _result(run: Path) -> dict[str, float]:
    return dict(json.loads((run / "result.json").read_text())["metrics"])


def test_an_ablation_tunes_pairs_stops_goes_on_and_says_what_came_of_it(tmp_path: Path) -> None:
    words = _words(
        tmp_path, ARM, "task.seeds=2", "task.budget.tokens=1000", "task.tuning.keys=[trainer.optimizer.lr]",
        "task.tuning.factors=[0.5,1]", "task.curve=[1.5]", "task.curve_seeds=1", "task.a_a=false",
        "hydra/launcher=devices", "hydra.launcher.jobs=2",
    )  # fmt: skip
    first = Command(*words, cwd=tmp_path)

    def finished() -> list[Path]:
        pages = (tmp_path / "outputs").glob("*/*_ablation/runs/*/report.html")
        return sorted(page for page in pages if is_complete(page.parent))

    first.wait_until(lambda: len(finished()) >= 1)
    first.send(signal.SIGTERM)
    assert first.wait().returncode == 128 + signal.SIGTERM, first.stderr
    kept = {path: path.stat().st_mtime_ns for path in finished()}
    assert kept
    done = launch(*words, "resume=auto", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items()), "a run was done twice"

    (folder,) = (tmp_path / "outputs").glob("*/*_ablation")
    jobs = json.loads((folder / "runs" / "sweep.json").read_text())["jobs"]
    assert len(jobs) == 5
    assert len(json.loads((folder / "tuning" / "sweep.json").read_text())["jobs"]) == 4
    found: dict[tuple[bool, str, int], float] = {}
    for number, job in enumerate(jobs):
        metrics = _result(folder / "runs" / str(number))
        has_sinks, seed = "model.use_attention_sinks=true" in job, job[-1]
        found[has_sinks, seed, int(metrics["steps"])] = metrics["validation_loss"]
        assert metrics["tokens"] == metrics["steps"] * 64
        assert any(text.startswith("trainer.optimizer.lr=") for text in job)
    whole = 1000 // 64
    assert sorted(found) == sorted(
        [(sinks, f"seed={seed}", whole) for sinks in (False, True) for seed in (0, 1)] + [(False, "seed=0", 22)]
    )
    differences = [found[True, f"seed={n}", whole] - found[False, f"seed={n}", whole] for n in (0, 1)]
    metrics = _result(folder)
    assert metrics["difference_sinks"] == pytest.approx(statistics.fmean(differences))
    half = 12.706 * statistics.stdev(differences) / 2**0.5
    assert metrics["difference_sinks_high"] - metrics["difference_sinks"] == pytest.approx(half, rel=1e-3)
    assert "no verdict: it takes 5 seeds" in done.stdout
    assert "runs: 5 of 5 runs" in done.stderr
    page = (folder / "report.html").read_text()
    assert "Effects" in page
    assert "model.use_attention_sinks=true" in page

    refused = launch(*words, f"resume={folder}", cwd=tmp_path)
    assert refused.returncode == 1
    assert "finished" in refused.stderr
    again = launch(*words, f"resume={folder}", "task.seeds=3", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(json.loads((folder / "runs" / "sweep.json").read_text())["jobs"]) == 7
    assert "rates" not in again.stderr


def test_an_arm_that_diverges_is_a_result(tmp_path: Path) -> None:
    arm = 'task.arms.wild=["trainer/optimizer=adamw","trainer.optimizer.lr=1e30","trainer.max_bad_steps=1"]'
    words = _words(tmp_path, arm, "task.seeds=2", "task.curve=[]", "task.a_a=false", "task.probe_steps=4",
                   baseline=("trainer.max_steps=12",))  # fmt: skip
    done = launch(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fails: diverged in 2 of 2 seeds" in done.stdout


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "task.arms={}: names none"),
        ([ARM, "task.seeds=1"], "task.seeds=1: must lie between 2 and 1000: an interval takes two, a verdict five"),
        (['task.arms.same=["model.use_attention_sinks=false"]'], "changes nothing"),
        (['task.arms.other=["task/tokenizer=bpe_4k"]'], "which must be equal in all arms"),
        (['task.arms.longer=["trainer.max_steps=99"]'], "task.budget says how long runs are"),
        (['task.arms.wrong=["model.d_modell=99"]'], "task.arms.wrong"),
        (['task.arms.baseline=["model.d_model=32"]'], "is the name of a part of every ablation"),
        ([ARM, "task.budget.tokens=9", "task.budget.flops=9"], "names more than one"),
        ([ARM, "task.tuning.keys=[trainer.schedule]"], "only a number other than 0 can be tuned"),
        ([ARM, "task.tuning.factors=[0.5,2]"], "leave out what an arm is configured with"),
        ([ARM, "task.metric=beauty"], "task.metric=beauty: which way it is better is not known"),
        ([ARM, "model=modern"], "this task does not read model"),
        ([ARM, "task.curve=[1]"], "task.curve=[1]"),
    ],
)
def test_what_cannot_be_compared_is_told_before_the_first_run(tmp_path: Path, more: list[str], message: str) -> None:
    done = launch(*_words(tmp_path, *more), cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
    assert not list((tmp_path / "outputs").glob("*/*/*/sweep.json"))


def test_another_launcher_of_hydras_gives_the_same(tmp_path: Path) -> None:
    words = _words(tmp_path, ARM, "task.seeds=2", "task.budget.tokens=700", "task.a_a=false", "task.curve=[]")
    found = []
    for launcher in ("process", "basic"):
        done = launch(*words, f"name={launcher}", f"hydra/launcher={launcher}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / "outputs").glob(f"*/*_{launcher}")
        found.append([_result(run)["validation_loss"] for run in sorted((folder / "runs").glob("[0-9]"))])
    assert len(found[0]) == 4
    assert found[0] == found[1]
