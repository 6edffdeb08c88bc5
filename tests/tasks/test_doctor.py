"""What the doctor finds where things are there, where they are not, and where the default cannot run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, Command
from hydra import initialize_config_dir
from made_models import make_pairs, problems, write_split

from modern_llm.experiment.contract import Paths
from modern_llm.hub import found_offline
from modern_llm.tasks.doctor import absent, choice, default_run, named, packages, writable


@pytest.fixture(autouse=True)
def hydra_knows_the_choices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no_hub"))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def test_a_task_is_ready_once_its_data_and_a_model_are_in_the_mirror(tmp_path: Path) -> None:
    stages = []
    for number in range(3):
        root = tmp_path / str(number)  # the doctor remembers which models a mirror holds
        root.mkdir()
        if number >= 1:
            write_split(root / "datasets" / "openai" / "gsm8k", "train", problems(4))
            readme = root / "datasets" / "openai" / "gsm8k" / "README.md"
            readme.write_text(
                "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n---\n"
            )
        if number == 2:
            (root / "models" / "openai-community" / "gpt2").mkdir(parents=True)
        stages.append(choice("task", "gsm8k", str(root)))
    assert [stage.verdict for stage in stages] == ["warning", "warning", "ok"]
    assert "openai/gsm8k is neither in the mirror" in stages[0].detail
    assert "gsm8k" not in stages[1].detail
    assert "distilgpt2 is neither in the mirror" in stages[1].detail
    assert stages[2].detail == "with model=gpt2"


def test_blimp_is_ready_once_its_paradigms_and_a_model_are_in_the_mirror(tmp_path: Path) -> None:
    stages = []
    for number in range(2):
        root = tmp_path / str(number)
        (root / "models" / "openai-community" / "gpt2").mkdir(parents=True)
        if number:
            make_pairs(root)
        stages.append(choice("task", "blimp", str(root)))
    assert [stage.verdict for stage in stages] == ["warning", "ok"]
    assert "nyu-mll/blimp is neither in the mirror" in stages[0].detail
    # One paradigm by name, of which there are two.
    told = [absent(*thing, str(root)) for thing in named({"_target_": "modern_llm.tasks.blimp.Blimp",
            "name": "nyu-mll/blimp", "paradigms": ["passive_1"]})]  # fmt: skip
    assert "passive_1" in told[0]


def test_a_configuration_that_the_mirror_lacks_is_named(mirror: Path) -> None:
    assert choice("task", "wikitext2", str(mirror)).verdict == "ok"
    raw = choice("task", "wikitext2_raw", str(mirror))
    assert raw.verdict == "warning"
    assert "'wikitext-2-raw-v1' not found" in raw.detail


def test_a_task_with_a_model_of_its_own_kind_and_one_that_runs_others(mirror: Path) -> None:
    assert choice("task", "verifier", str(mirror)).detail == "with model=verifier"
    assert "runs other tasks" in choice("task", "pipeline", str(mirror)).detail


@pytest.mark.parametrize(
    ("group", "name", "detail"),
    [("task", "text", "task.data.train=[]: names no file"), ("model", "from_run", "model.path: is missing"),
     ("task", "finetuning", "task.data.source.train: is missing")],
)  # fmt: skip
def test_a_choice_that_asks_for_something_says_what(group: str, name: str, detail: str) -> None:
    found = choice(group, name, None)
    assert found.verdict == "warning"
    assert detail in found.detail


def test_a_data_set_is_found_where_the_library_keeps_what_it_has_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `datasets` itself looks for it with the network cut off."""
    import datasets
    from datasets.load import CachedDatasetModuleFactory

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    assert found_offline("datasets", "owner/TinyThings", "main") is None
    (tmp_path / "owner___tiny_things" / "main" / "0.0.0" / "abc").mkdir(parents=True)
    assert CachedDatasetModuleFactory("owner/TinyThings").get_module()
    assert found_offline("datasets", "owner/TinyThings", "main") == tmp_path / "owner___tiny_things/main/0.0.0/abc"
    assert found_offline("datasets", "owner/TinyThings", "other") is None


def test_versions_are_those_of_the_packages() -> None:
    from importlib.metadata import version

    found = {line.what: line for line in packages()}
    assert found["torch"].detail.startswith(version("torch"))
    assert found["python"].verdict == "ok"


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path) -> None:
    assert writable("cache", tmp_path / "a" / "b", 0.0).verdict == "ok"
    assert writable("cache", tmp_path, 1e9).verdict == "warning"
    refused = writable("cache", Path("/proc/here"), 0.0)
    assert refused.verdict == "problem"
    assert "paths.cache=" in refused.detail


def test_the_default_runs_here() -> None:
    assert default_run(Paths()).verdict == "ok"


def test_a_default_that_cannot_run_is_an_exit_status_and_nobody_is_asked(tmp_path: Path) -> None:
    """A Python without the documentation that the default reads, on a machine whose sockets do not connect."""
    script = tmp_path / "script.py"
    script.write_text(
        "import runpy, socket, sys\n"
        "def refuse(*args): raise AssertionError('the network was asked')\n"
        "socket.socket.connect = refuse\n"
        "sys.modules['pydoc_data'] = None\n"
        f"sys.argv[0] = {str(ROOT / 'launch.py')!r}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = ["task=doctor", f"paths.outputs={tmp_path}", "paths.mirror=null"]
    done = Command(*words, program=script, cwd=ROOT).wait(120)
    assert done.returncode == 1
    assert "python launch.py cannot run: ModuleNotFoundError" in done.stderr
    assert "the network was asked" not in done.stdout + done.stderr
    (result,) = tmp_path.glob("*/*/result.json")
    assert json.loads(result.read_text())["metrics"]["default_runs"] == 0
    assert result.with_name("report.html").stat().st_size > 1000
