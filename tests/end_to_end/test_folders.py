"""One writer a folder, and a folder a run: commands beside each other, and what a command leaves that ends early."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from commands import ROOT, Command, Workplace, launch, result
from records import composed, language_model, training_rows, write_run

from modern_llm import locks
from modern_llm.reporting.record import RunRecord, is_complete, job_status
from modern_llm.runs.resume import unfinished
from modern_llm.runs.sweep import Sweep


@contextmanager
def held_by_another(folder: Path) -> Iterator[int]:
    """A process that works in a folder, and is killed."""
    code = (
        "import sys, time; from pathlib import Path; from modern_llm import locks\n"
        f"folder = Path({str(folder)!r}); locks.hold(folder); locks.begin(folder)\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    try:
        yield holder.pid
    finally:
        holder.kill()
        holder.communicate()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A finished run, for commands that only read."""
    write_run(tmp_path / "run", composed(), training_rows(20), language_model(5.0))
    return tmp_path


def test_commands_of_the_same_second_get_folders_of_their_own(runs: Path) -> None:
    commands = [Command("task=report", f"task.runs=[{runs}/run]", f"task.title=t{n}", cwd=runs) for n in range(4)]
    assert [command.wait(60).returncode for command in commands] == [0] * 4
    folders = list(runs.glob("outputs/*/*_report*"))
    assert len(folders) == 4
    assert all(len((folder / "sittings.jsonl").read_text().splitlines()) == 1 for folder in folders)
    titles = {
        line for folder in folders for line in (folder / "config.yaml").read_text().splitlines() if "title" in line
    }
    assert len(titles) == 4


def test_a_run_that_goes_is_told_from_one_that_was_killed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "outputs" / "day" / "run", composed(), training_rows(20))
    with held_by_another(folder) as pid:
        assert job_status(folder) == RunRecord.read(folder).status == "running"
        assert list(unfinished(tmp_path / "outputs", composed())) == []
        refused = launch(f"resume={folder}", cwd=tmp_path)
        assert refused.returncode == 1
        assert f"a run is going there (process {pid} on " in refused.stderr
    assert job_status(folder) == RunRecord.read(folder).status == "interrupted"
    assert list(unfinished(tmp_path / "outputs", composed())) == [folder]


def test_killed_behind_its_figures_a_run_is_not_complete(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", composed(), training_rows(20), language_model(5.0))
    assert is_complete(folder)  # of before, when folders had no locks
    with held_by_another(folder):
        pass
    assert job_status(folder) == "interrupted"
    locks.hold(folder)
    locks.end(folder)
    assert is_complete(folder)


def test_a_sweep_that_goes_is_neither_joined_nor_resumed(tmp_path: Path) -> None:
    jobs = [["seed=1"], ["seed=2"]]
    first = Sweep.open(tmp_path / "multirun/day/one", tmp_path / "multirun", jobs, None)
    code = (
        "from pathlib import Path; from modern_llm.runs.sweep import Sweep\n"
        f"top, jobs = Path({str(tmp_path)!r}) / 'multirun', {jobs!r}\n"
        "print(Sweep.open(top / 'day/one', top, jobs, 'auto').folder.name)\n"
        "Sweep.open(top / 'day/three', top, jobs, str(top / 'day/one'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "one_1\n"
    assert "a run is going there" in done.stderr
    assert first.folder.name == "one"


def test_a_refused_sweep_leaves_its_reasons_and_no_traceback(runs: Path) -> None:
    swept = ["-m", "task=report", "task.runs=[run],[nowhere]"]
    done = launch(*swept, cwd=runs)
    assert done.returncode == 1
    assert done.stderr.startswith("job 1 is refused (task.runs=[nowhere]): task.runs=['nowhere']: no run is found")
    assert "Traceback" not in done.stderr
    (folder,) = runs.glob("outputs/multirun/*/*/")
    assert "no run is found" in (folder / "1" / "failure.txt").read_text()
    assert "failed: task.runs=" in (folder / "sweep.md").read_text()
    assert job_status(folder / "0") == "finished"
    typo = launch("-m", "task=report", "task.rns=x", "task.title=a,b", cwd=runs)
    assert typo.returncode == 1
    assert "task.rns: there is no such key. Did you mean 'task.runs'?" in typo.stderr


@pytest.mark.parametrize(
    "door", [["hydra/sweeper=basic"], ["hydra/launcher=basic"], ["hydra/sweeper=basic", "hydra/launcher=devices"]]
)
def test_hydras_own_sweeper_and_launcher_run(door: list[str], runs: Path) -> None:
    done = launch("-m", *door, "task=report", "task.runs=[run]", "task.title=a,b", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert len(list(runs.glob("outputs/multirun/*/*_report/[01]/result.json"))) == 2
    refused = launch("-m", *door, "task=report", "task.runs=[run],[nowhere]", cwd=runs)
    assert refused.returncode == 1
    assert "no run is found" in refused.stderr
    assert len(list(runs.glob("outputs/multirun/*/*_report*/[01]/result.json"))) == 3


def test_configurations_from_elsewhere_reach_every_job_and_step(runs: Path) -> None:
    (runs / "lab" / "experiment").mkdir(parents=True)
    recipe = "# @package _global_\ndefaults: [{override /task: report}]\nvars: {words: many}\ntags: [mine]\n"
    (runs / "lab/experiment/mine.yaml").write_text(recipe + "task: {runs: [run], title: '${vars.words}'}\n")
    (runs / "lab/other.yaml").write_text("defaults: [config, _self_]\nseed: 5\n")
    search, folder = f"hydra.searchpath=[file://{runs}/lab]", f"--config-dir={runs}/lab"
    for flags in ([search], [folder], [folder, "--config-name=other"]):
        done = launch("-m", *flags, "experiment=mine", "task.title=a,b", cwd=runs)
        assert done.returncode == 0, done.stderr
    jobs = [RunRecord.read(path) for path in runs.glob("outputs/multirun/*/*/[01]")]
    assert len(jobs) == 6
    assert {tuple(job.tags) for job in jobs} == {("mine",)}
    again = {job.command.partition("experiment=")[0] for job in jobs}
    assert any("hydra.searchpath" in job.command for job in jobs)
    assert f"python launch.py {folder} --config-name=other " in again

    steps = 'task.steps={one: {overrides: ["experiment=mine"]}}'
    named = ["task=plan", steps, "name=tried"]
    for flags in ([search], [folder], [folder, "--config-name=other"]):
        first, second = (launch(*flags, *named, f"paths.outputs='{runs}/o (1)'", cwd=runs) for _ in range(2))
        assert first.returncode == second.returncode == 0, first.stderr + second.stderr
        assert "one  finished before" in second.stderr


def test_a_page_that_fails_costs_the_page(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    folder = tmp_path / "here"
    (folder / "loss.png").mkdir(parents=True)
    # Words so long that the perplexity of one is beyond all numbers, which JSON does not have.
    (tmp_path / "text.txt").write_text(("漢字" * 300 + "\n") * 30)
    given = ["trainer.max_steps=2", "hardware.precision=auto"]
    done = place.run(*given, f"hydra.run.dir={folder}")
    assert "The figures are kept in" in done.stderr
    assert f"resume={folder} makes what is missing" in done.stderr
    assert "loss.png" in (folder / "page_failure.txt").read_text()
    assert job_status(folder) == "finished"
    assert not is_complete(folder)
    figures = result(folder)["metrics"]
    json.loads((folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert "page or pictures could not be made" in RunRecord.read(folder).notes[0]
    assert RunRecord.read(folder).settings["hardware"]["precision"] in ("fp32", "bf16")
    (folder / "loss.png").rmdir()
    place.run(*given, f"resume={folder}")
    assert is_complete(folder)
    assert (folder / "report.html").is_file()
    assert result(folder)["metrics"]["validation_loss"] == figures["validation_loss"]

    # Killed between the figures and the page, it is made whole by the same command, and then it is done.
    (folder / "report.html").unlink()
    with held_by_another(folder):
        pass
    for expected, told in ((0, "evaluating"), (1, "this run is finished")):
        again = place.run(*given, f"resume={folder}", check=False)
        assert again.returncode == expected, again.stderr
        assert told in again.stderr
        assert (folder / "report.html").is_file()


def test_a_signal_before_the_first_step_is_told(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    run = place.start()
    run.wait_until(lambda: any(place.outputs.glob("*/*/sittings.jsonl")))
    run.send(signal.SIGTERM)
    assert run.wait(60).returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM\nContinue with the same command and resume=auto" in run.stderr
    assert "Traceback" not in run.stderr
    assert job_status(place.only_run()) == "interrupted"
