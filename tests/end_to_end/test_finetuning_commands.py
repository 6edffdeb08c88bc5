"""Finetuning and prompting from the command line, as a person types them, on a mirror made on the spot."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from commands import Command, final_weights, result


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from made_models import make_mirror

    return make_mirror(tmp_path_factory.mktemp("mirror"))


QUICK = [
    "hardware=cpu",
    "hardware.precision=fp32",
    "hardware.num_threads=1",
    "trainer.batch_size=4",
    "task.max_tokens=64",
]


def start(folder: Path, mirror: Path, *words: str) -> Command:
    folder.mkdir(parents=True, exist_ok=True)
    own = [f"paths.outputs={folder}", f"hydra.run.dir={folder}"]
    return Command(*words, *own, cwd=folder, env={"MODERN_LLM_MIRROR": str(mirror)})


def launch(folder: Path, mirror: Path, *words: str) -> Command:
    return start(folder, mirror, *words).wait()


def test_a_killed_lora_run_resumes_exactly(tmp_path: Path, mirror: Path) -> None:
    words = ["task=sst2", "model=gpt2", *QUICK, "task.data.source.held_out=8"]
    words += ["trainer.max_steps=60", "trainer.save_every=5", "trainer.eval_every=30"]
    whole = launch(tmp_path / "whole", mirror, *words)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert "accuracy: " in whole.stdout
    process = start(tmp_path / "killed", mirror, *words)
    process.wait_until(lambda: bool(list((tmp_path / "killed" / "checkpoints").glob("step_*[05]"))))
    process.send(signal.SIGKILL)
    process.wait()
    resumed = launch(tmp_path / "killed", mirror, *words, f"resume={tmp_path / 'killed'}")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert final_weights(tmp_path / "killed") == final_weights(tmp_path / "whole")
    one, other = result(tmp_path / "killed")["metrics"], result(tmp_path / "whole")["metrics"]
    assert one["accuracy"] == other["accuracy"]
    assert one["train_loss"] == other["train_loss"]


def test_a_run_is_evaluated_again_and_merged(tmp_path: Path, mirror: Path) -> None:
    words = ["task=gsm8k", "model=pretrained", "model.name=made/llama", *QUICK, "task.data.source.held_out=4"]
    words += ["task.data.max_new_tokens=6"]
    trained = launch(tmp_path / "run", mirror, *words, "trainer.max_steps=4")
    assert trained.returncode == 0, trained.stderr[-2000:]
    again = [w for w in words if not w.startswith("model")]
    again += ["model=from_run", f"model.path={tmp_path / 'run'}"]
    measured = launch(tmp_path / "again", mirror, *again, "task.train=false")
    assert measured.returncode == 0, measured.stderr[-2000:]
    answers = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("run", "again")]
    assert answers[0] == answers[1]
    merged = launch(tmp_path / "merged", mirror, "task=merge", "model=from_run", f"model.path={tmp_path / 'run'}")
    assert merged.returncode == 0, merged.stderr[-2000:]
    from transformers import AutoModelForCausalLM

    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task=sst2"], "must be a PretrainedModel or a ModelFromRun. Choose model="),
        (["task=wikitext2", "model=verifier"], "must be a ModernLLMConfig or"),
        (
            ["task=prompting", "model=gpt2", "trainer.max_steps=3"],
            "trainer.max_steps=3: this task does not read trainer",
        ),
        (["task=sst2", "model=gpt2", "model.lora.rnak=3"], "Did you mean 'model.lora.rank'"),
        (["task=sst2", "model=gpt2", "model.lora.rank=0"], "model.lora.rank=0: must be at least 1"),
        (["task=gsm8k", "model=gpt2", "task.form=classification"], "needs data with labels"),
        (["task=sst2", "model=from_run", "model.path=/nowhere"], "model.path='/nowhere': is no folder"),
        (["task=prompting", "model=gpt2", "task/data=sst3"], "sst2"),
    ],
)
def test_mistakes_are_refused_in_words(tmp_path: Path, mirror: Path, words: list[str], message: str) -> None:
    refused = launch(tmp_path, mirror, *words)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "result.json").exists()
