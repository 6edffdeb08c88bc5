"""What is refused before anything runs, what a resumed run keeps, and names of before."""

from __future__ import annotations

import errno
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from records import composed, write_run

from modern_llm.config import messages
from modern_llm.config.instantiate import ConfigError
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.config.names_of_the_field import NAMES
from modern_llm.config.overrides import require_own
from modern_llm.runs.checked import checked, task_of
from modern_llm.runs.folder import require_name
from modern_llm.runs.plan import _filled
from modern_llm.runs.resume import resumed_config
from modern_llm.runs.sweep import measured_once, objective_of
from modern_llm.tasks.pretraining import Pretraining

ROOT = Path(__file__).resolve().parents[2]


def config(*overrides: str) -> Any:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["name=x", *overrides])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.seed=3"], r"task\.seed: seed is set without the task, .* Write seed=…"),
        (["task.trainer=null"], r"task\.trainer: .* Write trainer=…"),
        (["++task.model.d_model=3"], r"task\.model\.d_model: .* Write model\.d_model=…"),
        (["~task.trainer"], r"task\.trainer: trainer is set without the task"),
        (["~trainer.optimizer"], r"a part may be chosen, and not be taken out. Choose one: trainer/optimizer=…"),
        (["task=wikitext2", "model=verifier"], r"must be a ModernLLMConfig or .* Choose model=.*tiny"),
        (["task=sft"], r"must be a PretrainedModel or .* Choose model=.*gpt2.*from_run"),
        (
            ["task=sft", "model=gpt2", "task/data=gsm8k_solutions"],
            r"an InstructionData\. Choose task/data=al.*p3",
        ),
        (["logger=wandb", "logger.mode=onlin"], r"logger\.mode='onlin': must be one of online, offline, disabled"),
        (["task=generate", "model=gpt2", "task.models=[gpt2,gpt2]"], r"task\.models=.*: names one twice"),
        (["tags=mine"], r"tags='mine': must be a list of texts"),
        (["+trainer.learning_rate=1"], r"TrainerSettings has no such key\. It is trainer\.optimizer\.lr\."),
    ],
)
def test_mistakes_name_the_right_key(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(config(*overrides), overrides)


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_package_that_a_logger_needs_is_asked_for_at_once() -> None:
    with pytest.raises(ConfigError, match=r"logger=wandb: the package wandb is not installed\. Run `pip install"):
        checked(config("logger=wandb"), [])


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".", "..", "a\nb", "x" * 300, "a\\b"])
def test_a_name_that_is_none_for_a_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name for a folder"):
        require_name(name)


def test_a_cache_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"paths\.cache={tmp_path}/file/x: {tmp_path}/file is a file"):
        checked(config(f"paths.cache={tmp_path}/file/x"), [])


def test_names_of_the_field_name_keys_that_are_there() -> None:
    from modern_llm.config.choices import choices_of, is_group
    from modern_llm.config.differences import leaves

    keys = {"resume"}
    for choice in ([], ["task=sft", "model=gpt2"], ["task=prompting", "model=pretrained"],
                   ["task=dpo", "model=from_run"], ["task=rl", "model=from_run", "task/reward=sum"],
                   ["logger=wandb"], ["task=generate", "model=gpt2"],
                   ["model=decoder", "trainer/average=ema"]):  # fmt: skip
        plain = OmegaConf.to_container(config(*choice), resolve=False)
        keys |= {key for key, _ in leaves(plain)}
    keys |= {key.rpartition(".")[0] for key in keys}
    for name, told in NAMES.items():
        key = told.split(",")[0].split(":")[0].split(";")[0].split(" ")[0]
        group, _, choice = key.partition("=")
        assert group in keys or (is_group(group) and (not choice or choice in choices_of(group))), (name, told)


def test_what_is_a_mistake_is_told_by_where_it_is_raised(tmp_path: Path) -> None:
    """A checkout in a folder of the package's own name makes no other package's errors a person's."""
    other = tmp_path / "modern_llm" / ".venv" / "lib.py"
    other.parent.mkdir(parents=True)
    for path, expected in ((other, False), (messages._PACKAGE / "made_up.py", True)):
        with pytest.raises(ValueError, match="x") as failure:
            exec(compile("raise ValueError('x')", str(path), "exec"))
        assert is_mistake(failure.value) is expected
    assert not is_mistake(FileNotFoundError(errno.ENOENT, "No such file or directory", "x"))
    assert is_mistake(FileNotFoundError("x: not found. Put it there."))
    for number in (errno.EACCES, errno.ENOTDIR, errno.ENOSPC):
        failed = OSError(number, "why", "/there")
        assert is_mistake(failed)
        assert in_words(failed).startswith("/there: why. ")


def test_names_of_before_are_told_and_read(tmp_path: Path) -> None:
    record = composed()
    record["task"] |= {
        "_target_": "modern_llm.tasks.language_modeling.LanguageModeling",
        "data": {"_target_": "modern_llm.data.sources.PythonDocs", "validation_percent": 8},
        "tokenizer": {"_target_": "modern_llm.data.tokenizers.ByteTokenizer"},
    }
    record["paths"]["_target_"] = "modern_llm.tasks.base.Paths"
    del record["tags"], record["model"]["ffn"]
    text = json.dumps(record)
    for package, modules in {"attention": ("rope", "sinks"), "decoding": ("sampling",), "logs": ("loggers",),
                             "optimization": ("optimizers", "schedules")}.items():  # fmt: skip
        for module in modules:
            assert f".{package}.{module}." in text
            text = text.replace(f".{package}.{module}.", f".{module}.")
    folder = write_run(tmp_path / "run", text)
    now = resumed_config(folder, config("trainer.max_steps=7"), ["trainer.max_steps=7"])
    task = task_of(now)
    assert isinstance(task, Pretraining)
    assert task.trainer.max_steps == 7
    for typed, told in {"task/dataset=sst2": "task/dataset: is task/data now", "task.problems.x=1": "task.data.x now",
                        "trainer=debug": "Write debug=default."}.items():  # fmt: skip
        with pytest.raises(Exception) as refusal:  # noqa: PT011 - Hydra's own
            config(typed)
        assert told in in_words(refusal.value, [typed])


def test_precision_is_kept_by_a_resumed_run(tmp_path: Path) -> None:
    record = composed("hardware=cpu", "hardware.precision=bf16")
    folder = write_run(tmp_path / "0", record)
    for typed in (["hardware=cpu"], ["hardware.precision=auto"], ["seed=0"]):
        kept = resumed_config(folder, config("hardware=cpu", *typed), typed)
        assert kept["hardware"]["precision"] == "bf16"
    typed = ["hardware.device=cuda", "hardware.precision=auto"]
    elsewhere = resumed_config(folder, config(*typed), typed)
    assert elsewhere["hardware"]["precision"] == "auto"


def test_the_jobs_of_a_sweep_share_one_measurement_of_precision(tmp_path: Path) -> None:
    found = iter(["bf16", "fp32", "fp16"])
    cpu, gpu = ({"device": device, "precision": "auto"} for device in ("cpu", "cuda"))
    assert [measured_once(tmp_path, cpu, lambda: next(found)) for _ in range(3)] == ["bf16"] * 3
    assert measured_once(tmp_path, gpu, lambda: next(found)) == "fp32"
    assert measured_once(tmp_path, cpu, lambda: next(found)) == "bf16"
    (tmp_path / "precision.json").write_text("{torn")
    assert measured_once(tmp_path, cpu, lambda: next(found)) == "fp16"


def test_the_objective_of_a_job_reaches_a_sweeper(tmp_path: Path) -> None:
    result = {"metrics": {"loss": 2.5, "other": 1}, "objective_metric": "loss"}
    assert objective_of(write_run(tmp_path / "a", "x: 1", result=result)) == 2.5
    assert objective_of(write_run(tmp_path / "b", "x: 1", result=result | {"objective_metric": "none"})) is None


def test_variables_and_tags_are_recorded(tmp_path: Path) -> None:
    record = checked(config("+vars.width=32", "model.d_model=${vars.width}", "tags=[a,b]"), [])
    assert record["vars"] == {"width": 32}
    assert record["model"]["d_model"] == 32
    assert record["tags"] == ["a", "b"]
    folder = write_run(tmp_path / "run", record)
    assert resumed_config(folder, config("tags=[c]"), ["tags=[c]"])["model"]["d_model"] == 32


def test_folders_of_steps_are_quoted_where_hydra_would_read_signs() -> None:
    def place(step: str) -> str:
        return f"/o (1)/{step}"

    assert _filled("model.path={a}/sft", place) == "model.path='/o (1)/a/sft'"
    assert _filled("task.models=[{a},{b}]", place) == "task.models=['/o (1)/a','/o (1)/b']"
    assert _filled("task.path='{a}/x y'", place) == "task.path='/o (1)/a/x y'"
    assert _filled("task.path={a}", lambda step: f"/o/{step}") == "task.path=/o/a"


def test_debug_keeps_the_tasks_optimiser() -> None:
    for task in (["task=sft", "model=gpt2"], ["task=dpo", "model=gpt2"], []):
        plain, short = config(*task), config(*task, "debug=default")
        assert short.trainer.optimizer == plain.trainer.optimizer
        assert short.trainer.schedule == plain.trainer.schedule
        assert short.trainer.max_steps == 6


@pytest.mark.parametrize(
    "override",
    [
        "task/data=p3",
        "trainer.max_steps=3",
        "++model.rope.theta=2",
        "experiment=[quick]",
        "task/data@task.replay.data=wikitext2",
        "task/rows@task.data.source=hub",
    ],
)
def test_a_stage_may_be_given_its_own(override: str) -> None:
    require_own("task.sft", [override])
