"""The memory plan of every task that trains: its step is the task's own, and needs what torch then allocates."""

from __future__ import annotations

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
from modern_llm.experiment.memory import plan_of
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
    "pretrained": ["task=python_docs", "model=gpt2", "task.seq_len=64"],
    "classification, lora": ["task=sst2", "model=gpt2", "task.max_tokens=48", "task.data.source.held_out=4",
                             *ROWS],
    "label words, t5": ["task=sst2", "model=t5_small", "task.max_tokens=48", "task.data.source.held_out=4",
                             *ROWS],
    "answers, llama": ["task=samsum", "model=pretrained", "model.name=made/llama", "model/lora=off",
                       "task.max_tokens=64", "task.data.source.held_out=4", *ROWS],
    "sft, packed": ["task=sft", *OWN, SUMS["instructions"], "task.max_tokens=96", *ROWS],
    "sft, lora": ["task=sft", "model=gpt2", SUMS["instructions"], "task.max_tokens=96", "task.packing=false", *ROWS],
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


def built(base: Path, hub: Path, cache: Path, *overrides: str) -> Any:
    words = [word.replace("RUN", str(base)) for word in overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", [*words, *TINY, f"paths.mirror={hub}", f"paths.cache={cache}", "name=x"])
    return build(config.task)


@pytest.mark.parametrize("name", TASKS)
def test_a_tasks_step_is_planned(base: Path, hub: Path, tmp_path: Path, name: str) -> None:
    task, folder = built(base, hub, tmp_path, *TASKS[name]), RunFolder(tmp_path, {})
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
