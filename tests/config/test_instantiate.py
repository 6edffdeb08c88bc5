"""From YAML to objects: what is refused, how, and before what."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from records import write_run

from modern_llm.config.choices import is_base
from modern_llm.config.instantiate import ConfigError, build, describe, find_target
from modern_llm.models import ModernLLMConfig, MoEConfig
from modern_llm.models.attention.rope import YarnRope
from modern_llm.models.attention.sinks import StreamingSinks

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
GROUPS = sorted({f.parent.relative_to(CONF).as_posix() for f in CONF.rglob("*.yaml")} - {".", "experiment"})
CHOICES = [
    (group, f.stem)
    for group in GROUPS
    if not group.startswith(("hydra", "experiment/"))
    for f in sorted((CONF / group).glob("*.yaml"))
    if not is_base(f) or (group, f.stem) in (("task", "pretraining"), ("task/data", "labelled"))
]
# Parts that stand at several places.
AT = {"task/rows": "task/rows@task.data.source", "task/sampling": "task/sampling@task.samples.sampling"}


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides=["name=x", *overrides])


def nodes(tree: Any) -> list[dict[str, Any]]:
    """Every node with a target."""
    below = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else []
    own = [tree] if isinstance(tree, dict) and "_target_" in tree else []
    return own + [node for branch in below for node in nodes(branch)]


def with_a_pretrained_model(group: str, choice: str, folder: Path | None = None) -> list[str]:
    """What else a choice needs that is about pretrained models."""
    if group == "model" and "_target_: modern_llm.models" not in (CONF / "model" / f"{choice}.yaml").read_text():
        named = {"pretrained": ["model.name=x"], "from_run": [f"model.path={folder}"]}.get(choice)
        if choice == "from_run" and folder is not None:
            (folder / "manifest.json").touch()
            (folder / "config.yaml").touch()
        scratch = re.search(r"\[(decoder|recipe)\b|- decoder$", (CONF / "model" / f"{choice}.yaml").read_text(), re.M)
        return [] if scratch else ["task=prompting", *(named or [])]
    if group == "task/data":
        return data_overrides(choice, folder)
    if group == "task/rows":
        data = {"hub": "p3", "files": "instruction_files", "arithmetic": "arithmetic_instructions"}[choice]
        own = [f"task.data.source.train={folder}/a.txt"] if choice == "files" else []
        return ["model=gpt2", "task=sft", f"task/data={data}", *own]
    if group == "model/lora":
        return ["model=gpt2", "task=prompting"]
    if group == "task/asking":
        return ["model=gpt2", "task=best_of_n"]
    if (group, choice) == ("model", "verifier"):
        return ["task=verifier"]
    if group == "task/policy_loss" or (group, choice) == ("trainer", "rewards"):
        taught = ["model@task.teacher=gpt2"] if choice == "distillation" else []
        return ["model=gpt2", "task=rl", *taught]
    if group == "task/reward":
        if choice == "verifier" and folder is not None:
            for name in ("result.json", "verifier.json"):
                (folder / name).write_text('{"status": "finished"}')
        own = {"verifier": [f"task.reward.path={folder}"], "sum": ["+task/reward@task.reward.rewards.right=number"]}
        return ["model=gpt2", "task=rl", *own.get(choice, [])]
    if group == "task/replay":
        return ["model=gpt2", "task=sft"]
    if group == "task/loss":
        return ["model=gpt2", "task=dpo"]
    if (group, choice) == ("task", "evaluate_checkpoints") and folder is not None:
        (folder / "step_00000001").mkdir()
        return [f"task.path={folder}"]
    if (group, choice) == ("task", "error_analysis") and folder is not None:
        (folder / "predictions.jsonl").touch()
        return [f"task.path={folder}"]
    if (group, choice) == ("task", "verifier_eval") and folder is not None:
        for name in ("result.json", "verifier.json"):
            (folder / name).write_text('{"status": "finished"}')
        return [f"task.verifier={folder}"]
    if (group, choice) == ("task", "plan"):
        return ['task.steps={one: {overrides: ["task=report"]}}']
    if group == "task" and choice in PRETRAINED_TASKS:
        return ["model=gpt2", *(["task/data=sst2"] if choice == "finetuning" else [])]
    return []


PRETRAINED_TASKS = (
    "finetuning",
    "sst2",
    "samsum",
    "dialogsum",
    "gsm8k",
    "prompting",
    "export",
    "merge",
    "sft",
    "dpo",
    "reward_model",
    "rl",
    "verifier",
    "best_of_n",
    "generate",
    "chat",
    "long_context",
    "attention_maps",
    "blimp",
    "lm_eval",
)
# Which task reads a form of data, told by what a choice of `task/data` builds.
READERS = {
    "HubText": "text",
    "PythonDocs": "text",
    "TextFiles": "text",
    "ShardedText": "text",
    "Mixture": "text",
    "LabelledData": "prompting",
    "InstructionData": "sft",
    "PreferenceData": "dpo",
    "SolutionData": "verifier",
    "SampledSolutions": "verifier",
    "ProblemData": "best_of_n",
}


def data_overrides(choice: str, folder: Path | None) -> list[str]:
    """A task that reads a choice of `task/data`, and what the choice leaves to be named."""
    node = composed("model=gpt2", "task=prompting", f"task/data={choice}").task.data
    task = READERS[node._target_.rpartition(".")[2]]
    own = ["task.data.prompt='{x}'", "task.data.target='{y}'", "task.data.metrics=[exact_match]"]
    source = "_target_: modern_llm.data.rows.HubRows, name: x, config: null, evaluation_split: test, held_out: 9"
    own.append(f"task.data.source={{{source}}}")
    if task == "text":
        docs = "_target_: modern_llm.data.text.sources.PythonDocs, validation_percent: 8"
        needed = {
            "text_files": [f"task.data.train=[{folder}/a.txt]"],
            "shards": ["task.data.name=x"],
            "mixture": [f"+task.data.sources.docs={{{docs}}}"],
        }
        return [f"task={task}", *needed.get(choice, [])]
    files = [f"task.data.source.train={folder}/a.txt"] if choice.endswith("_files") else []
    labels = ["task.data.labels=[a,b]"] if choice == "labelled_files" else []
    return ["model=gpt2", f"task={task}", *files, *labels, *(own if choice == "labelled" else [])]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_builds_and_its_yaml_names_every_key(group: str, choice: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    extra = [f"task.data.train=[{tmp_path}/a.txt]"] if (group, choice) == ("task", "text") else []
    if (group, choice) == ("task", "pretraining"):
        extra = ["task.data={_target_: modern_llm.data.text.sources.PythonDocs, validation_percent: 8}"]
    if choice == "report":
        write_run(tmp_path / "run", {"name": "x"})
        extra = [f"task.runs=[{tmp_path}]"]
    if choice == "ensemble":
        extra = ["task.models=[a,b]"]
    if (group, choice) == ("task", "ablation"):
        extra = ['task.arms={wide: ["model.d_model=64"]}']
    if (group, choice) == ("task", "ladder"):
        extra = ['task.sizes={a: ["model.d_model=32"], b: ["model.d_model=64"], c: ["model.d_model=96"]}']
    if choice == "lm_eval":
        pytest.importorskip("lm_eval")
        extra = ["task.tasks=[blimp]"]
    if group == "model" and choice == "max_rtx3060":
        extra = ["hardware=rtx3060"]
    config = composed(f"{AT.get(group, group)}={choice}", *extra, *with_a_pretrained_model(group, choice, tmp_path))
    build(config.task)
    for node in nodes(OmegaConf.to_container(config, resolve=True)):
        target = find_target(node["_target_"], "")
        if is_dataclass(target) and node["_target_"] not in (
            "modern_llm.training.optimization.schedules.Constant",  # its final fraction can only be 1
        ):
            assert {f.name for f in fields(target)} == node.keys() - {"_target_"}, node["_target_"]


def test_every_setting_is_read_somewhere() -> None:
    code = "\n".join(p.read_text() for p in (ROOT / "modern_llm").rglob("*.py")) + (CONF / "config.yaml").read_text()
    code += "\n".join(i for p in CONF.rglob("*.yaml") for i in re.findall(r"\$\{[^}]*\}", p.read_text()))
    read = set(re.findall(r"\.(\w+)", code))
    settings = {
        path for p in CONF.rglob("*.yaml") for path in re.findall(r"_target_: (modern_llm[\w.]+)", p.read_text())
    }
    assert len(settings) > 100
    for path in settings:
        for field in fields(find_target(path, "")):
            assert field.name in read, f"nothing reads {path}.{field.name}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.max_stepz=5"], r"trainer\.max_stepz=5: TrainerSettings has no such key\. Did you mean 'max_steps'"),
        (["trainer.max_steps=abc"], r"trainer\.max_steps='abc': must be a whole number"),
        (["trainer.max_steps=1.5"], r"trainer\.max_steps=1\.5: must be a whole number"),
        (["trainer.grad_clip=x"], r"trainer\.grad_clip='x': must be a number or null"),
        (["model.use_attention_sinks=3"], r"model\.use_attention_sinks=3: must be true or false"),
        (["task.samples.prompts=text"], r"task\.samples\.prompts='text': must be a list of a text"),
        (
            ["hardware.compile=whole", "hardware.attention=flex"],
            r"hardware\.attention='flex': .* hardware\.compile=whole\. Use hardware\.compile=true",
        ),
        (
            ["hardware.attention=flex"],
            r"hardware\.attention='flex': .* hardware\.compile=False\. Use hardware\.compile=true",
        ),
        (
            ["hardware=cpu", "hardware.compile=true", "hardware.attention=flex"],
            r"hardware\.attention='flex': .* hardware\.device=cpu\. Use hardware\.attention=sdpa",
        ),
        (["hardware.device=tpu"], r"hardware\.device='tpu': must be one of auto, cpu, cuda, mps"),
        (["model.rope.theta=0.5"], r"model\.rope\.theta=0\.5: must be above 1"),
        (
            [
                "task=rl",
                "model=gpt2",
                "task/policy_loss=distillation",
                "model@task.teacher=from_run",
                "task.teacher.path=nowhere",
            ],
            r"^task\.teacher\.path='nowhere': is no folder",
        ),
        (["model.n_heads=5"], r"model\.n_heads=5: must divide model\.d_model=128"),
        (["task.data=null"], r"task\.data=None: must be a Source"),
        (["task=pretraining"], r"task\.data.*(is missing|Missing)"),
        (
            ["trainer.optimizer._target_=modern_llm.training.optimization.schedules.Cosine"],
            r"must be an OptimizerSettings",
        ),
        (["model._target_=os.system"], r"only parts of modern_llm may be instantiated"),
        (["model._target_=modern_llm.checks.require"], r"is no class"),
        (["model._target_=modern_llm.models.config.Nope"], r"there is no such class"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(Exception, match=message) as failure:
        build(composed(*overrides).task)
    assert isinstance(failure.value, ConfigError) or "Missing" in type(failure.value).__name__


def test_a_swapped_part_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.schedule=.*must be a Schedule"):
        build(composed("trainer.schedule={_target_: modern_llm.models.attention.rope.NoRope}").task)


def test_checking_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys; from hydra import compose, initialize_config_dir\n"
        "from modern_llm.config.instantiate import build\n"
        f"with initialize_config_dir({str(CONF)!r}, version_base='1.3'):\n"
        "    build(compose('config', overrides=['name=x']).task)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'tokenizers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_description_rebuilds_equal_objects() -> None:
    config = ModernLLMConfig(
        vocab_size=9, moe=MoEConfig(4, 1), rope=YarnRope(factor=3.0), sinks=StreamingSinks(num_sinks=2)
    )
    assert build(OmegaConf.create(describe({"model": config})).model, "model") == config


def test_links_in_a_description_are_not_followed_outside_the_project(tmp_path: Path) -> None:
    """A checkpoint's configuration may come from anyone."""
    text = "model:\n  _target_: subprocess.Popen\n  args: [touch, here]\n"
    with pytest.raises(ConfigError, match="only parts of modern_llm"):
        build(OmegaConf.create(text).model, "model")
