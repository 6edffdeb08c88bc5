"""The memory plan of every task that trains: its step is the task's own, and needs what torch then allocates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from allocations import most_allocated
from bases import trained_from_scratch
from hydra import compose, initialize_config_dir
from made_models import byte_tokenizer
from torch.profiler import ProfilerActivity, profile

from modern_llm.config.instantiate import build
from modern_llm.experiment.contract import RunFolder
from modern_llm.experiment.memory import fitted, largest_that_fits, plan_of
from modern_llm.experiment.training import Session
from modern_llm.training.memory.ledger import Ledger
from modern_llm.training.memory.plan import rehearse
from modern_llm.training.runtime import Runtime

ROOT = Path(__file__).resolve().parents[2]
TINY = ["trainer.batch_size=3", "trainer.max_steps=2", "hardware=cpu", "hardware.precision=fp32"]
SUMS = {name: f"task/data=arithmetic_{name}" for name in ("instructions", "preferences", "problems", "solutions")}
OWN = ["model=from_run", "model.path=RUN"]
ROWS = ["task.max_train_examples=40", "task.max_evaluation_examples=8"]

TASKS = {
    "pretraining": ["task=python_docs", "model=tiny", "task.seq_len=64", "task/tokenizer=bytes"],
    "documents apart": ["task=python_docs", "model=tiny", "task.seq_len=64", "task/tokenizer=bytes",
                        "task.document_masking=true"],
    "classification, lora": ["task=sst2", "model=gpt2", "task.max_tokens=48", "task.data.source.held_out=4",
                             *ROWS],
    "label words, t5": ["task=sst2", "model=t5_small", "task.max_tokens=48", "task.data.source.held_out=4",
                             *ROWS],
    "answers, llama": ["task=samsum", "model=pretrained", "model.name=made/llama", "model/lora=off",
                       "task.max_tokens=64", "task.data.source.held_out=4", *ROWS],
    "sft, packed": ["task=sft", *OWN, SUMS["instructions"], "task.max_tokens=96", *ROWS],
    "sft, lora": ["task=sft", "model=gpt2", SUMS["instructions"], "task.max_tokens=96", "task.packing=false", *ROWS],
    "sft, qlora": ["task=sft", "model=gpt2", "model/lora=qlora", SUMS["instructions"], "task.max_tokens=96", *ROWS,
                   "hardware.precision=bf16"],
    "dpo": ["task=dpo", *OWN, SUMS["preferences"], "task.max_tokens=96", *ROWS],
    "kto": ["task=dpo", "model=gpt2", SUMS["preferences"], "task.max_tokens=96", "task/loss=kto", *ROWS],
    "reward model": ["task=reward_model", *OWN, SUMS["preferences"], "task.max_tokens=96", *ROWS],
    "rl": ["task=rl", *OWN, SUMS["problems"], "task/reward=length", "task.policy_loss.beta=0.1",
           "task.drawing.updates=2",
           "task.asking.max_new_tokens=16", "task.drawing.samples=2", "task.max_train_problems=6",
           "task.evaluation.problems=2", "task.evaluation.selection=2", "model/lora=off"],
    "verifier": ["task=verifier", "model=verifier", SUMS["solutions"], "task/tokenizer=bytes", "task.max_tokens=64",
                 "task.max_train_problems=20", "task.max_evaluation_problems=8"],
    "verifier, gpt2": ["task=verifier", "model=gpt2", SUMS["solutions"], "task.max_tokens=64",
                       "task.max_train_problems=20", "task.max_evaluation_problems=8"],
}  # fmt: skip
_NO_MATTER = {"sequence_ids", "lengths", "facts", "document_ids"}  # the last where a row holds several texts


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_from_scratch(tmp_path_factory.mktemp("base") / "run", byte_tokenizer())


def built(base: Path, hub: Path, *overrides: str) -> Any:
    words = [word.replace("RUN", str(base)) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*TINY, *words, f"paths.mirror={hub}", f"paths.cache={base.parent}", "name=x"])
    return build(config.task)


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_step_is_planned(base: Path, hub: Path, tmp_path: Path, name: str) -> None:
    task, folder = built(base, hub, *TASKS[name]), RunFolder(tmp_path, {})
    plan = plan_of(task, folder, task.hardware)
    runtime = Runtime(task.hardware)
    at = Session(folder, runtime)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        at.loaded = task.sketch(at)
        step = task.rehearsal(at)
        rehearse(Ledger(64), step, task.trainer, runtime)
    assert plan.total == pytest.approx(most_allocated(found), rel=0.03), plan.table()
    # The batch is one of the task's own, and none of these is longer.
    at = Session(folder, runtime)
    at.data = task.read(at)
    at.loaded = task.load(at)
    parts = task.parts(at)
    assert type(parts.objective) is type(step.objective)
    planned, longest = step.batch(task.trainer.batch_size), step.batch(1)["input_ids"].shape[1]
    for _ in range(3):
        batch = next(parts.stream)
        assert {*batch} - _NO_MATTER == {*planned} - _NO_MATTER
        assert batch["input_ids"].shape[1] <= longest


EIGHT = [*TASKS["reward model"], "trainer.batch_size=8"]


def test_the_largest_that_fits() -> None:
    sizes = [1, 2, 4, 8, 12]
    for limit in range(15):
        fitting = [size for size in sizes if size <= limit]
        assert largest_that_fits(sizes, float, limit) == (fitting[-1] if fitting else None)


@pytest.fixture
def limit(base: Path, hub: Path, tmp_path: Path) -> str:
    """An override that two of eight rows fit into, and not four."""
    task = built(base, hub, *EIGHT)
    two, four = (plan_of(task, RunFolder(tmp_path, {}), replace(task.hardware, micro_batch_size=n)) for n in (2, 4))
    assert two.total < 0.95 * four.total
    return f"hardware.memory_limit_gb={two.total * 1.01 / 1e9}"


def test_a_step_that_does_not_fit_says_what_would(base: Path, hub: Path, tmp_path: Path, limit: str) -> None:
    task = built(base, hub, *EIGHT, limit)
    with pytest.raises(ValueError, match=r"memory_limit_gb=.*\n(.*\n)*What fits: hardware\.micro_batch_size=2 \| "):
        task.run(RunFolder(tmp_path, {}))
    fitted(replace(task, hardware=replace(task.hardware, micro_batch_size=2)), RunFolder(tmp_path, {}))


def test_max_rtx3060_is_the_deepest_that_fits(base: Path, hub: Path, tmp_path: Path) -> None:
    words = ["task=wikitext2", "model=max_rtx3060", "hardware=rtx3060", "hardware.precision=bf16",
             "hardware.micro_batch_size=1"]  # fmt: skip
    task = built(base, hub, *words)
    for layers, fits in ((task.model.n_layers, True), (task.model.n_layers + 1, False)):
        deep = replace(task, model=replace(task.model, n_layers=layers))
        plan = plan_of(deep, RunFolder(tmp_path, {}), task.hardware)
        assert (plan.total <= 11.5e9) == fits, plan.table()


def test_what_fits_is_taken_and_told(base: Path, hub: Path, tmp_path: Path, limit: str) -> None:
    found, plain = tmp_path / "auto", tmp_path / "plain"
    automatic = [*EIGHT, limit, "hardware.micro_batch_size=auto"]
    figures = {}
    for folder, words in ((found, automatic), (plain, EIGHT)):
        folder.mkdir()
        figures[folder] = built(base, hub, *words).run(RunFolder(folder, {}))
    result = json.loads((found / "result.json").read_text())
    assert result["protocol"]["micro_batch_size"] == 2
    assert 0 < result["metrics"]["planned_memory_gb"] < result["metrics"]["peak_memory_gb"]  # of the whole process
    assert "planned_memory_gb" not in figures[plain]
    assert figures[found]["train_loss"] == pytest.approx(figures[plain]["train_loss"], rel=1e-4)
    # What was found once is kept: other micro-batches would be rounded differently.
    kept = json.loads((found / "memory.json").read_text())
    (found / "memory.json").write_text(json.dumps(kept | {"micro_batch_size": 3}))
    again = built(base, hub, *automatic)
    assert fitted(again, RunFolder(found, {}))[0].hardware.micro_batch_size == 3


def test_a_plan_alone_trains_nothing(base: Path, hub: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["hardware.plan_only=true", "hardware.device=cuda", "hardware.precision=bf16", "hardware.compile=true"]
    task = built(base, hub, *EIGHT, "hardware.micro_batch_size=auto", "hardware.memory_limit_gb=1", *words)
    metrics = task.run(RunFolder(tmp_path, {}))
    assert metrics["micro_batch_size"] == 8
    assert 0 < metrics["planned_memory_gb"] < 0.4  # without CUDA's own
    told = capsys.readouterr().out
    assert all(name in told for name in ("weights", "activations", "optimizer", "total", "8 of 8"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["memory.json", "result.json"]
