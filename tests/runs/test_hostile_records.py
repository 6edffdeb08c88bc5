"""Records that a stranger made to do something: each is refused in words, soon, and nothing happens.

`CANARY` in a record stands for a path that such a record would make, and nothing may.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from records import composed
from safetensors.torch import save_file

from modern_llm.config.instantiate import build
from modern_llm.config.messages import in_words, is_mistake
from modern_llm.config.records import read_record
from modern_llm.data.chat import render_chat
from modern_llm.data.text.sources import PythonDocs
from modern_llm.data.text.tokenizers import ByteTokenizer
from modern_llm.experiment.contract import RunFolder
from modern_llm.experiment.loading import load_model
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun, PretrainedModel
from modern_llm.runs.checked import task_of
from modern_llm.runs.pipeline.task import Pipeline
from modern_llm.runs.resume import resumed_config, unfinished
from modern_llm.runs.sweep import Sweep
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware

ROOT = Path(__file__).resolve().parents[2]
DEEP = "[" * 200_000 + "]" * 200_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CREATE = "oc.create:{_target_: os.makedirs, name: CANARY}"


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """End a hang, which no assertion would see."""

    def too_long(number: int, frame: object) -> None:
        raise AssertionError(f"it is not refused within {seconds} s")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def checkpoint(folder: Path, config: str, weights: bytes | None = None) -> Path:
    """A checkpoint whose manifest is right: whoever makes one can make that, too."""
    folder.mkdir()
    (folder / "config.yaml").write_text(config)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    if weights is not None:
        (folder / "model.safetensors").write_bytes(weights)
        ByteTokenizer().prepare(PythonDocs(), folder.parent, None).save(folder / "tokenizer")
    files = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*")
        if path.is_file()
    }
    (folder / "manifest.json").write_text(json.dumps({"step": 1, "files": files}))
    return folder


def load(choice: ModelFromRun | PretrainedModel) -> None:
    load_model(choice, Runtime(Hardware(device="cpu", precision="fp32")), None, [], train=False)


def model_path(config: str, weights: bytes | None = None) -> Callable[[Path], None]:
    """`model.path=` and `task.models=` on a checkpoint with this configuration."""

    def run(place: Path) -> None:
        text = config.replace("CANARY", str(place / "canary"))
        load(ModelFromRun(str(checkpoint(place / "checkpoint", text, weights)), FullFinetuning()))

    return run


def on_itself(place: Path) -> None:
    folder = place / "checkpoint"
    model_path(f"model: {{_target_: modern_llm.pretrained.settings.ModelFromRun, path: {folder}}}")(place)


def linked_to_a_device(place: Path) -> None:
    folder = checkpoint(place / "checkpoint", "model: null")
    (folder / "config.yaml").unlink()
    (folder / "config.yaml").symlink_to("/dev/zero")
    read_record(folder / "config.yaml")


def resumed(**changes: Any) -> Callable[[Path], None]:
    """`resume=<folder>` on the record of a run with these changes at dotted keys."""

    def run(place: Path) -> None:
        record = composed()
        for key, value in changes.items():
            *above, last = key.replace("__", ".").split(".")
            node: Any = record
            for name in above:
                node = node[name]
            node[last] = value
        text = json.dumps(record).replace("CANARY", str(place / "canary"))
        resumed_text(text)(place)

    return run


def resumed_text(text: str) -> Callable[[Path], None]:
    def run(place: Path) -> None:
        (place / "run").mkdir()
        (place / "run" / "config.yaml").write_text(text)
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", ["name=x"])
        # A record that is passed over must not stop the others.
        assert list(unfinished(place.parent, composed())) == [] or "config" in text
        task_of(resumed_config(place / "run", config, []))

    return run


def stage(override: str) -> Callable[[Path], None]:
    """An override among those of a pipeline's stage, as its record holds them."""

    def run(place: Path) -> None:
        typed = override.replace("CANARY", str(place / "canary"))
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", ["name=x", "task=pipeline"])
        config.task.sft = [typed] if "${" not in typed else [typed.replace("${", "\\${")]
        build(config.task)

    return run


def step(override: str, common: bool = False) -> Callable[[Path], None]:
    """The same in a step of a plan, or for all of its steps."""

    def run(place: Path) -> None:
        typed = override.replace("CANARY", str(place / "canary"))
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", ["name=x", "experiment=attention_sinks"])
        config.task.steps.none.overrides = ["seed=1"] if common else [typed]
        config.task.common = [typed] if common else []
        build(config.task)

    return run


def pipeline_json(text: str) -> Callable[[Path], None]:
    """`resume=` on a pipeline with this `pipeline.json`."""

    def run(place: Path) -> None:
        (place / "pipeline.json").write_text(text.replace("CANARY", str(place / "canary")))
        record = composed("experiment=pipeline_smoke")
        task = task_of(record)
        assert isinstance(task, Pipeline)
        task.run(RunFolder(place, record))

    return run


def sweep_json(text: str) -> Callable[[Path], None]:
    """`resume=` on a sweep with this `sweep.json`, and `resume=auto` beside it."""

    def run(place: Path) -> None:
        folder = place / "multirun" / "day" / "sweep"
        folder.mkdir(parents=True)
        (folder / "sweep.json").write_text(text)
        new = place / "multirun" / "day" / "new"
        assert Sweep.open(new, place / "multirun", [["seed=1"]], "auto").folder == new
        Sweep.open(place / "other", place / "multirun", [["seed=1"]], str(folder))

    return run


def template(text: str) -> Callable[[Path], None]:
    return lambda place: print(
        len(render_chat(text.replace("CANARY", str(place / "canary")), [{"role": "user", "content": "hi"}], True))
    )


def hugging_face(files: dict[str, bytes]) -> Callable[[Path], None]:
    """`model.name=` on a folder with these files."""

    def run(place: Path) -> None:
        folder = place / "model"
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content.replace(b"CANARY", str(place / "canary").encode()))
        load(PretrainedModel(str(folder), FullFinetuning()))

    return run


class _Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path(self.path).touch, ())


def pickled(place: Path) -> None:
    hugging_face({"config.json": GPT2, "pytorch_model.bin": pickle.dumps(_Touch(str(place / "canary")))})(place)


GPT2 = json.dumps({"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 8, "vocab_size": 9}).encode()
ELSEWHERE = json.dumps({"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "mine.Mine"}}).encode()
SMALLEST = "vocab_size: 257, d_model: 8, n_layers: 1, n_heads: 1, qk_norm: false"
CHECKPOINTS = "modern_llm.training.checkpoint.Checkpoints"

HOSTILE: dict[str, Callable[[Path], None]] = {
    # A checkpoint's config.yaml.
    "a call of the system": model_path("model: {_target_: os.system, command: touch CANARY}"),
    "a process": model_path("model: {_target_: subprocess.Popen, args: [touch, CANARY]}"),
    "a file opened": model_path("model: {_target_: builtins.open, file: CANARY, mode: w}"),
    "an escaped interpolation": model_path(f'model: {{_target_: x, name: "\\\\${{{CREATE}}}"}}'),
    "an escaped interpolation in a model": model_path(
        f'model: {{_target_: modern_llm.pretrained.settings.PretrainedModel, name: "\\\\${{{CREATE}}}"}}'
    ),
    "an interpolation": model_path(f'model: "${{{CREATE}}}"'),
    "an interpolation in a key": model_path(f'"${{{CREATE}}}": 1'),
    "an environment variable": model_path(
        'model: {_target_: modern_llm.pretrained.settings.PretrainedModel, name: "${oc.env:HOME}"}'
    ),
    "a class that a module imports": model_path("model: {_target_: modern_llm.experiment.contract.Path}"),
    "a class imported by a name of before": model_path("model: {_target_: modern_llm.tasks.base.Path}"),
    "a class that makes folders": model_path(f"model: {{_target_: {CHECKPOINTS}, folder: CANARY, keep: 1}}"),
    "a private name": model_path("model: {_target_: modern_llm.files._loader}"),
    "partial": model_path("model: {_target_: modern_llm.pretrained.settings.FullFinetuning, _partial_: true}"),
    "arguments by place": model_path(
        "model: {_target_: modern_llm.pretrained.settings.PretrainedModel, _args_: [CANARY]}"
    ),
    "convert": model_path("model: {_target_: modern_llm.pretrained.settings.PretrainedModel, name: x, _convert_: all}"),
    "recursive": model_path(
        "model: {_target_: modern_llm.pretrained.settings.PretrainedModel, name: x, _recursive_: false}"
    ),
    "a YAML tag": model_path('model: !!python/object/apply:os.system ["touch CANARY"]'),
    "a YAML tag of a module": model_path("model: !!python/name:os.system"),
    "YAML aliases": model_path(BOMB),
    "YAML nested deeply": model_path(f"model: {DEEP}"),
    "YAML that is large": model_path("model: " + "x" * 5_000_000),
    "a list for a model": model_path("model: [1, 2]"),
    "a task for a model": model_path("model: {_target_: modern_llm.experiment.contract.Paths, outputs: CANARY}"),
    "labels of another kind": model_path("labels: {a: 1}"),
    "a checkpoint upon itself": on_itself,
    "a device for a configuration": linked_to_a_device,
    "a header of 2^60 bytes": model_path(
        f"model: {{_target_: modern_llm.models.config.ModernLLMConfig, {SMALLEST}}}",
        (2**60).to_bytes(8, "little") + b"{}",
    ),
    # A run's config.yaml.
    "a run's task outside": resumed(task___target_="os.system"),
    "a run's task that makes folders": resumed(task={"_target_": CHECKPOINTS, "folder": "CANARY", "keep": 1}),
    "a run's link": resumed(task__model=f"${{{CREATE}}}"),
    "a run's paths": resumed(paths__mirror="${oc.env:HOME}"),
    "a run's name": resumed(name=f"${{{CREATE}}}"),
    "a run's escaped text": resumed(task__samples__prompts=[f"\\${{{CREATE}}}"]),
    "a run's logger": resumed(logger={"_target_": "modern_llm.training.logs.loggers.os.makedirs", "name": "CANARY"}),
    "a run without a task": resumed(task=None),
    "a run that is a list": resumed_text("[1, 2, config]"),
    "a run that is torn": resumed_text('{"task": {"config'),
    "a run of aliases": resumed_text(f"{BOMB}config: 1"),
    "a run nested deeply": resumed_text(f"config: {DEEP}"),
    # Overrides that a record gives to a stage of a pipeline or to a step of a plan.
    "a stage with a callback": stage("+hydra.callbacks.x={_target_: os.makedirs, name: CANARY}"),
    "a stage with a launcher": stage("hydra/launcher=basic"),
    "a stage with another folder": stage("hydra.run.dir=CANARY"),
    "a stage with a flag": stage("--config-dir=/tmp"),
    "a stage with a file elsewhere": stage("model=../../../tmp/evil"),
    "a stage in another package": stage("trainer@hydra.callbacks.x=default"),
    "a stage with a class": stage("model._target_=os.system"),
    "a stage with a class inside": stage("++task.data={_target_: os.makedirs, name: CANARY}"),
    "a stage with an interpolation": stage(f"task.data.name=${{{CREATE}}}"),
    "a stage that resumes": stage("resume=CANARY"),
    "a step with a callback": step("+hydra.callbacks.x={_target_: os.makedirs, name: CANARY}"),
    "a step with a flag": step("-m"),
    "all steps with a search path": step("hydra.searchpath=[file:///tmp]", common=True),
    "a base with a callback": pipeline_json('{"base": ["+hydra.callbacks.x=CANARY"], "stages": {}}'),
    "a base of another kind": pipeline_json('{"base": [1], "stages": {}}'),
    "stages of another kind": pipeline_json('{"base": [], "stages": {"sft": 3}}'),
    "a stage with overrides of another kind": pipeline_json('{"base": [], "stages": {"dpo": {"overrides": [3]}}}'),
    "a torn pipeline": pipeline_json('{"base": ["mod'),
    "a pipeline nested deeply": pipeline_json(DEEP),
    # Sweeps.
    "an empty sweep": sweep_json(""),
    "a sweep of another kind": sweep_json('{"jobs": [3, {"a": 1}]}'),
    "a sweep that is a list": sweep_json("[]"),
    "a sweep nested deeply": sweep_json(DEEP),
    "a sweep with a number of 5000 digits": sweep_json('{"jobs": ' + "9" * 5000 + "}"),
    # A tokenizer's chat template.
    "a template with nested loops": template(
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    ),
    "a template that repeats a text": template("{{ 'a' * 4000000000 }}"),
    "a template that fills a field": template("{{ '%4000000000d' % 1 }}"),
    "a template that doubles a text": template(
        "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    ),
    "a template with a tower of powers": template("{{ 9**9**9 }}"),
    "a template that calls itself": template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
    "a template that looks for classes": template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a template that looks for the system": template("{{ cycler.__init__.__globals__.os.mkdir('CANARY') }}"),
    # Folders of Hugging Face models.
    "a pickle": pickled,
    "code of its own": hugging_face(
        {"config.json": ELSEWHERE, "mine.py": b"open('CANARY', 'w')", "model.safetensors": b"\2" + bytes(7) + b"{}"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_record_is_refused_and_does_nothing(name: str, tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    with at_most(30), pytest.raises(Exception) as refusal:  # noqa: PT011 - the message is judged below
        HOSTILE[name](place)
    assert not (place / "canary").exists()
    assert is_mistake(refusal.value), refusal.value
    message = in_words(refusal.value)
    assert len(message) > 20
    assert "is not refused" not in message
