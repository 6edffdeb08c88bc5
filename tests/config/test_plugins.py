"""Packages of a person's own: allowed by the command alone, and told of in one line where they cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import SMALL, Command, Workplace, launch, launch_afresh, with_path

PART = """
from dataclasses import dataclass

from modern_llm.models.feed_forward.kinds import FeedForwardKind


@dataclass(frozen=True)
class Cubed(FeedForwardKind):
    gated = False
    hugging_face = None

    def act(self, x):
        return x.relu() ** 3

    def act_backward(self, grad, x):
        return grad * 3 * x.relu() ** 2


@dataclass(frozen=True)
class Unrelated:
    size: int = 1
"""
CUBED = ["model/ffn=swiglu", "model.ffn._target_=own_parts.Cubed", "plugins=[own_parts]"]


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    (tmp_path / "own_parts.py").write_text(PART)
    return Workplace(tmp_path)


def refusal(place: Workplace, *overrides: str) -> str:
    return last_line(place.run(*overrides, check=False))


def last_line(done: Command) -> str:
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("Error: "), done.stderr
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_a_class_of_the_current_folder_is_trained_and_its_run_resumed(place: Workplace) -> None:
    place.run(*CUBED, "trainer.max_steps=2")
    run = place.only_run()
    record = (run / "config.yaml").read_text()
    assert "own_parts.Cubed" in record
    assert "plugins" not in record  # a record allows nothing
    further = [f"resume={run}", "trainer.max_steps=3"]
    told = last_line(launch(*further, cwd=place.folder))
    assert "own_parts.Cubed" in told
    assert "add plugins=[own_parts]" in told
    assert launch(*further, "plugins=[own_parts]", cwd=place.folder).returncode == 0
    from_run = ["task=text", "task.train=false", "task.data.train=[text.txt]", "model=from_run", f"model.path={run}"]
    machine = ["hardware=cpu", "hardware.precision=fp32", "paths.cache=cache"]
    assert "add plugins=[own_parts]" in last_line(launch(*from_run, *machine, cwd=place.folder))
    assert launch(*from_run, *machine, "plugins=[own_parts]", cwd=place.folder).returncode == 0


def test_jobs_of_a_sweep_have_the_plug_ins_of_its_command(place: Workplace) -> None:
    place.run("-m", *CUBED, "trainer.max_steps=1", "seed=1,2")
    assert len(list(place.outputs.glob("multirun/*/*/*/result.json"))) == 2


def test_a_record_does_not_widen_what_may_be_named(place: Workplace) -> None:
    place.run(*CUBED, "trainer.max_steps=1")
    run = place.only_run()
    with (run / "config.yaml").open("a") as file:
        file.write("plugins: [own_parts]\n")
    assert "add plugins=[own_parts]" in last_line(launch(f"resume={run}", "trainer.max_steps=2", cwd=place.folder))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["plugins=[own_part]"], "plugins=[own_part]: there is no such package"),
        (["plugins=own_parts"], "must be a list of packages, as plugins=[my_lab]"),
        (["plugins=['own parts']"], "is no name of a package"),
        (["plugins=[broken]"], "fails when it is imported, at"),
        (["plugins=[needs_more]"], "imports nowhere_to_be_found, which is not installed"),
        (["plugins=[own_parts]", "model.ffn._target_=own_parts.Unrelated"], "must be a FeedForwardKind"),
        (["plugins=[own_parts]", "model.ffn._target_=own_parts.Cube"], "there is no such class"),
        (["plugins=[own_parts]", "model.ffn._target_=own_parts.dataclass"], "is no class"),
        (["plugins=[own_parts]", "model.ffn._target_=subprocess.Popen"], "only parts of modern_llm"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(place: Workplace, overrides: list[str], said: str) -> None:
    (place.folder / "broken.py").write_text("x = 1 / 0\n")
    (place.folder / "needs_more.py").write_text("import nowhere_to_be_found\n")
    assert said in refusal(place, *overrides)


def test_an_installed_package_with_an_entry_point_is_allowed_by_being_there(place: Workplace) -> None:
    installed = place.folder / "site"
    installed.mkdir()
    (place.folder / "own_parts.py").rename(installed / "own_parts.py")
    info = installed / "own_parts-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-parts\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[modern_llm.plugins]\nlab = own_parts\n")
    words = place.words(*CUBED[:2], "trainer.max_steps=1")
    done = launch_afresh(*words, cwd=place.folder, env=with_path(installed))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", [["-m", "modern_llm"], ["-c", "from modern_llm.command import main; main()"]])
def test_the_command_works_in_any_folder(tmp_path: Path, program: list[str]) -> None:
    (tmp_path / "a.txt").write_text("A line of text, and another one.\n" * 400)
    lab = tmp_path / "lab" / "experiment"
    lab.mkdir(parents=True)
    (lab / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    words = [*(w for w in SMALL if w != "experiment=quick"), "experiment=mine", "trainer.max_steps=1"]
    place = ["task.data.train=[a.txt]", "paths.cache=cache"]
    command = [sys.executable, *program, "--config-dir", "lab", *words, *place]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=with_path(), timeout=120)
    assert done.returncode == 0, done.stderr
    (record,) = (tmp_path / "outputs").glob("*/*/config.yaml")
    assert "seed: 7" in record.read_text()
