"""What a pipeline hands to its stages: from which policy each starts, on which data, and what is left as it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.experiment.contract import RunFolder
from modern_llm.runs.pipeline.plan import STAGES, planned
from modern_llm.runs.pipeline.state import State
from modern_llm.runs.pipeline.task import Pipeline

CONF = Path(__file__).resolve().parents[2] / "conf"
FOLDER = Path("/pipeline")
Plan = Callable[..., dict[str, list[str]]]


@pytest.fixture
def plan() -> Any:
    """Overrides of the runs of a pipeline on a pretrained base, by run."""

    def made(there: Sequence[str], deals: bool = False, **given: list[str]) -> dict[str, list[str]]:
        every = {stage: given.get(stage, []) for stage in STAGES}
        return planned(FOLDER, every, there, ["model=pretrained", "model.name=x"], ["seed=3"], False, deals)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield made


def started_from(overrides: list[str]) -> str:
    model = compose("config", ["name=x", *overrides]).model
    return Path(model.get("path", "base")).name


def test_every_run_starts_from_the_policy_before_it(plan: Plan) -> None:
    of = plan(["base", "sft", "reward_model", "dpo", "rl", "rl_rejection", "rl_sft", "verifier", "best_of_n"])
    before = {"sft": "base", "reward_model": "sft", "dpo": "sft", "best_of_n": "rl"}
    before |= dict.fromkeys(("rl", "rl_rejection", "rl_sft"), "dpo")
    assert {run: started_from(of[run]) for run in before} == before
    of = plan(["reward_model", "rl", "rl_sft"])
    assert {run: started_from(of[run]) for run in ("reward_model", "rl", "rl_sft")} == dict.fromkeys(
        ("reward_model", "rl", "rl_sft"), "base"
    )
    assert "rl_rejection" not in of


def test_preferences_are_dealt_whatever_data_are_chosen_unless_folds_are_given(plan: Plan) -> None:
    there, chosen = ["sft", "reward_model", "dpo"], "task/data=arithmetic_preferences"

    def folds(of: dict[str, list[str]]) -> list[tuple[int, int]]:
        data = [compose("config", ["name=x", *of[run]]).task.data for run in ("dpo", "reward_model")]
        return [(each.folds, each.fold) for each in data]

    assert folds(plan(there, True, dpo=[chosen], reward_model=[chosen, "task.data.source.terms=3"])) == [(2, 0), (2, 1)]
    told = plan(there, True, dpo=[chosen, "task.data.folds=5"], reward_model=["task.data.folds=1", "task.data.fold=0"])
    assert folds(told) == [(5, 0), (1, 0)]
    assert folds(plan(there)) == [(1, 0), (1, 0)]


def test_what_learned_from_all_pairs_keeps_them(tmp_path: Path) -> None:
    """A reward model that is asked for later does not undo the DPO that has run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [
            "name=x",
            "task=pipeline",
            "model=pretrained",
            "model.name=x",
            "task.stages=[sft,reward_model,dpo]",
        ]
        task = build(compose("config", overrides).task)
    assert isinstance(task, Pipeline)
    state = State(RunFolder(tmp_path, {}))
    state.begin([])
    there = ["sft", "reward_model", "dpo"]
    assert task._deals(state, there)
    assert not task._deals(state, ["sft", "dpo"])
    for stage, overrides in (("reward_model", ["task.data.folds=2"]), ("dpo", ["task.data.max=1"])):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "result.json").write_text(json.dumps({"status": "finished", "metrics": {}}))
        state.note(stage, {"overrides": overrides})
        assert task._deals(state, there) == (stage == "reward_model")
