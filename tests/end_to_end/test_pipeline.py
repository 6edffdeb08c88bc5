"""The pipeline from the command line: whole, killed in every stage, in parts, and refused."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import Command, launch, read_rows

SMOKE = ["experiment=pipeline_smoke", "hardware=cpu", "hardware.precision=fp32"]


class Place:
    """Outputs of its own, and a cache, unless it shares one."""

    def __init__(self, folder: Path, mirror: Path | None = None, cache: Path | None = None) -> None:
        self.outputs = folder / "outputs"
        self.own = [
            f"paths.outputs={self.outputs}",
            f"paths.cache={cache or folder / 'cache'}",
            f"paths.mirror={mirror or 'null'}",
        ]

    def run(self, *overrides: str) -> Command:
        return launch(*overrides, *self.own, timeout=500)

    def kill_when(self, reached: Callable[[Path], bool], *overrides: str) -> None:
        """SIGKILL the command alone, in the middle of the stage."""
        run = Command(*overrides, *self.own)
        run.wait_until(lambda: any(reached(folder) for folder in self.outputs.glob("*/*")))
        run.send(signal.SIGKILL)
        assert run.wait(60).returncode == -signal.SIGKILL

    def only(self) -> Path:
        (state,) = self.outputs.glob("*/*/pipeline.json")
        return state.parent


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open() as file:
        return list(csv.DictReader(file))


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())["metrics"]


def at_step(stage: str, step: int) -> Callable[[Path], bool]:
    def reached(folder: Path) -> bool:
        log = folder / stage / "metrics.jsonl"
        return log.is_file() and any(row["step"] >= step for row in read_rows(log.parent))

    return reached


def has_lines(name: str, count: int) -> Callable[[Path], bool]:
    return lambda folder: (folder / name).is_file() and (folder / name).read_text().count("\n") >= count


@pytest.mark.slow
def test_killed_in_every_stage_it_gives_the_table_of_an_undisturbed_run(tmp_path: Path) -> None:
    whole = Place(tmp_path / "whole")
    done = whole.run(*SMOKE, "task.measures.perplexity_tokens=null")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = whole.only()
    expected = table(folder)
    assert [row["stage"] for row in expected] == ["base", "sft", "dpo", "verifier", "best_of_n"]
    assert (folder / "table.md").read_text() in done.stdout

    # The table's figures against those that the stages measured themselves, by other ways.
    base, sft, dpo = ({k: float(v) for k, v in row.items() if v and k != "stage"} for row in expected[:3])
    assert base["perplexity"] == pytest.approx(metrics_of(folder / "base")["validation_token_perplexity"], rel=1e-5)
    assert sft["conversation_loss"] == pytest.approx(metrics_of(folder / "sft")["evaluation_loss"], rel=1e-5)
    own = metrics_of(folder / "dpo")
    assert dpo["reward_accuracy"] == own["evaluation_preference_accuracy"]
    assert dpo["reward_margin"] == pytest.approx(own["evaluation_reward_margin"], rel=1e-3)
    assert dpo["reward_accuracy"] > 0.7
    assert sft["conversation_loss"] < base["conversation_loss"]
    assert sft["perplexity_ratio"] == pytest.approx(sft["perplexity"] / base["perplexity"])
    assert float(expected[3]["roc_auc"]) == metrics_of(folder / "verifier")["roc_auc"]
    assert float(expected[4]["majority_em"]) == metrics_of(folder / "best_of_n")["majority_em"]
    page = (folder / "report.html").read_text()
    assert "What is 8 + 9?" in page
    assert all(f"task={stage}" in page for stage in ("sft", "dpo", "verifier", "best_of_n"))

    broken = Place(tmp_path / "broken", cache=tmp_path / "whole" / "cache")
    points = [
        at_step("base", 20),
        at_step("sft", 60),
        at_step("dpo", 20),
        at_step("verifier", 60),
        has_lines("best_of_n/samples.jsonl", 4),
        lambda folder: (folder / "measures" / "sft.json").is_file(),
    ]
    for number, reached in enumerate(points):
        broken.kill_when(reached, *SMOKE, "task.measures.perplexity_tokens=null", *(["resume=auto"] if number else []))
    again = broken.run("resume=auto", *SMOKE, "task.measures.perplexity_tokens=null")
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stderr.count("finished before") == 5
    assert table(broken.only()) == expected
    for stage in ("base", "sft", "dpo", "verifier"):
        assert read_rows(broken.only() / stage) == read_rows(folder / stage)


PARTS = {
    "sft": ["task/data=arithmetic_instructions", "task.max_tokens=160", "trainer.max_steps=4", "trainer.batch_size=2"],
    "dpo": ["task/data=arithmetic_preferences", "task.max_tokens=160", "trainer.max_steps=4", "trainer.batch_size=4"],
}


def listed(overrides: list[str]) -> str:
    return "[" + ",".join(f"'{o}'" for o in overrides) + "]"


@pytest.mark.slow
def test_parts_of_a_pipeline_on_a_pretrained_model(tmp_path: Path) -> None:
    from made_models import make_mirror

    place = Place(tmp_path, make_mirror(tmp_path / "hub"))
    given = ["task=pipeline", "model=pretrained", "model.name=made/llama", "hardware=cpu", "hardware.num_threads=1",
             "task.measures.perplexity_tokens=500", "task.measures.max_new_tokens=4", "task.measures.prompts=[Hi?]",
             *(f"task.{stage}={listed(overrides)}" for stage, overrides in PARTS.items())]  # fmt: skip
    missing = place.run(*given, "task.stages=[dpo]")
    assert missing.returncode == 1
    assert "dpo needs sft, which has not run in" in missing.stderr
    assert "task.stages=[sft,dpo]" in missing.stderr
    first = place.run(*given, "task.stages=[sft]")
    assert first.returncode == 0, first.stderr[-3000:]
    folder = place.only()
    assert [row["stage"] for row in table(folder)] == ["base", "sft"]
    kept = (folder / "sft" / "result.json").stat().st_mtime_ns
    nothing = place.run(*given, f"resume={folder}", "task.stages=[sft]")
    assert nothing.returncode == 1
    assert "this is finished. Ask for further stages" in nothing.stderr
    further = place.run(*given, f"resume={folder}", "task.stages=[dpo]")
    assert further.returncode == 0, further.stderr[-3000:]
    assert (folder / "sft" / "result.json").stat().st_mtime_ns == kept
    rows = table(folder)
    assert [row["stage"] for row in rows] == ["base", "sft", "dpo"]
    assert 0 <= float(rows[2]["win_rate"]) <= 1
    state = json.loads((folder / "pipeline.json").read_text())
    assert {stage: facts["status"] for stage, facts in state["stages"].items()} == {
        "sft": "finished",
        "dpo": "finished",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.stages=[dpo,sft]"], "must be in their order, each once. Write task.stages=[sft,dpo]"),
        (["task.stages=[]"], "task.stages=[]: names none"),
        (["task.stages=[ppo]"], "must be a list of one of base, sft, dpo, rl, verifier, best_of_n"),
        (["task.stages=[rl]"], "rl needs sft, which has not run"),
        (["task.dpo=['trainer.max_steps=0']"], "trainer.max_steps=0: must be at least 1"),
        (["task.dpo=['task.loss.bta=1']"], "task.dpo=['task.loss.bta=1']"),
        (["task.sft=['task/data=nothing']"], "nothing"),
        # The later stage's mistake comes first: data are looked up when all stages are built.
        (["task.sft=['task/data=alpaca']", "task.dpo=['trainer.lr=1']"], "task.dpo=['trainer.lr=1']"),
        (["task.measures.duels=0"], "task.measures.duels=0: must be at least 1"),
        (["trainer.max_steps=3"], "this task does not read trainer"),
    ],
)  # fmt: skip
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, overrides: list[str], message: str) -> None:
    place = Place(tmp_path)
    done = place.run("experiment=pipeline_smoke", *overrides)
    assert done.returncode == 1, done.stderr[-2000:]
    assert message in done.stderr
    assert not list(place.outputs.glob("*/*/base"))


def test_learning_from_rewards_solves_more_held_out_problems_and_keeps_the_base(tmp_path: Path) -> None:
    place = Place(tmp_path)
    place.run("experiment=rl_smoke", "hardware=cpu")
    metrics = metrics_of(place.only())
    assert metrics["rl_evaluation_pass_at_1_gain"] >= 0.1
    assert metrics["rl_evaluation_pass_at_1_gain_low"] > 0
    assert metrics["rl_solved"] >= metrics["sft_solved"] >= 0.4
    assert max(metrics["sft_perplexity"], metrics["rl_perplexity"]) < 1.3 * metrics["base_perplexity"]
    assert [row["stage"] for row in table(place.only())] == ["base", "sft", "rl"]
    drawn = read_rows(place.only() / "rl")
    assert max(row["log_prob_gap"] for row in drawn if "log_prob_gap" in row) < 1e-4
