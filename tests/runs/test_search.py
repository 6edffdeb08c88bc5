"""A search: its space, its study on disk, what it learns, how it is taken up again, and what it stops."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig
from records import ROOT, composed, read_page, training_rows, write_run

from modern_llm import locks
from modern_llm.files import read_json
from modern_llm.reporting.record import job_status
from modern_llm.runs.commands import SweepInterrupted
from modern_llm.runs.search.pruning import pruning
from modern_llm.runs.search.settings import Search
from modern_llm.runs.search.space import Space
from modern_llm.runs.search.study import Study, objective_and_direction
from modern_llm.runs.sweep import Sweep
from modern_llm.training.interruption import Pruned

optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

Launch = Callable[[Iterator[tuple[int, list[str]]], Callable[[int], None]], None]
LR = "trainer.optimizer.lr=tag(log,interval(1e-4,1e-1))"


def space(*overrides: str) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


def search(**changed: Any) -> Search:
    return Search(**read_yaml_of_the_sweeper() | changed)


def read_yaml_of_the_sweeper() -> dict[str, Any]:
    import yaml

    content = yaml.safe_load((ROOT / "conf/hydra/sweeper/optuna.yaml").read_text())
    return {key: value for key, value in content.items() if key not in ("_target_", "max_batch_size", "params")}


def compose_job(job: Sequence[str]) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["name=trial", *job])


@cache
def record() -> dict[str, Any]:
    return composed()


def rate(job: list[str]) -> float:
    (found,) = (float(text.split("=")[1]) for text in job if text.startswith("trainer.optimizer.lr="))
    return found


def distance(job: list[str]) -> float:
    """An objective whose best rate is 0.01."""
    return abs(math.log10(rate(job)) + 2)


def finish(folder: Path, job: list[str]) -> None:
    """What a job leaves that has run."""
    value = distance(job)
    result = {"metrics": {"validation_loss": value}, "objective_metric": "validation_loss"}
    write_run(folder, record(), training_rows(20, level=value), result, job)


def study(folder: Path, *overrides: str, resume: str | None = None, **changed: Any) -> Study:
    own, how = space(*(overrides or (LR,))), search(**changed)
    asked = {"space": own.told, "fixed": own.fixed, "metric": "validation_loss", "direction": "minimize"}
    return Study(Sweep.open(folder, folder.parents[1], [], resume, asked), own, how, compose_job)


def run_all(made: Study, launched: list[tuple[int, list[str]]]) -> Launch:
    """Runs jobs at once, and notes them."""

    def launch(jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        for number, job in jobs:
            launched.append((number, job))
            finish(made.sweep.folder / str(number), job)
            ended(number)

    return launch


def test_a_space_is_written_as_hydra_writes_sweeps() -> None:
    made = space(
        "seed=3",
        LR,
        "model.dropout=interval(0,0.5)",
        "model.d_model=int(interval(16,64))",
        "trainer.batch_size=range(2,9,2)",
        "model.n_layers=tag(log,range(1,9))",
        "trainer.grad_clip=range(0.5,2,0.5)",
        "model/gqa=choice(mha,mqa)",
        "task.samples.prompts=[a b],[c]",
    )
    assert made.fixed == ["seed=3"]
    assert made.distributions() == {
        "trainer.optimizer.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "model.dropout": FloatDistribution(0, 0.5),
        "model.d_model": IntDistribution(16, 64),
        "trainer.batch_size": IntDistribution(2, 8, step=2),  # Hydra's ranges end before their end
        "model.n_layers": IntDistribution(1, 8, log=True),
        "trainer.grad_clip": FloatDistribution(0.5, 1.5, step=0.5),
        "model/gqa": CategoricalDistribution(["mha", "mqa"]),
        "task.samples.prompts": CategoricalDistribution(["[a\\ b]", "[c]"]),
    }
    values = dict.fromkeys(made.axes, 4) | {"trainer.optimizer.lr": 0.000123456789, "task.samples.prompts": "[a b]"}
    job = made.job(values)
    assert job[:3] == ["seed=3", "trainer.optimizer.lr=0.000123457", "model.dropout=4"]
    assert job[-1] == "task.samples.prompts=[a b]"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("seed=1", "no override is a search space"),
        ("model.dropout=interval(0.5,0.1)", "model.dropout='interval(0.5,0.1)': has no inside"),
        ("model.dropout=tag(log,interval(0,1))", "is logarithmic and begins at 0 or below"),
        ("seed=range(5,5)", "holds no value"),
        ("seed=tag(log,range(1,9,2))", "it needs step 1"),
        ("seed=tag(log,choice(1,2))", "is a choice, which has no scale"),
        ("seed=tag(quick,range(1,9))", "has the tag quick, and log alone is known"),
    ],
)
def test_a_space_without_sense_is_refused(typed: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        space(typed)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0: must be a whole number of at least 1"),
        ({"direction": "up"}, "hydra.sweeper.direction='up': is not known. Choose among null, minimize, maximize"),
        ({"pruner_warmup": 1}, "hydra.sweeper.pruner_warmup=1: must be at least 0 and below 1"),
        ({"sampler": "grid"}, "Choose among tpe, random"),
        ({"pruner": None}, "Choose among median, halving, none"),
    ],
)
def test_settings_of_a_search_are_checked(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        search(**changed)


def test_the_objective_says_which_way_is_better() -> None:
    assert objective_and_direction(space(LR), search(), compose_job) == ("validation_loss", "minimize")
    upward = space(LR, "task=sst2", "model=gpt2")
    assert objective_and_direction(upward, search(), compose_job) == ("accuracy", "maximize")
    assert objective_and_direction(space(LR), search(direction="maximize"), compose_job)[1] == "maximize"
    with pytest.raises(ValueError, match=r"none of 8 jobs of this search can run: model\.d_modl: there is no such key"):
        objective_and_direction(space("model.d_modl=range(8,64)"), search(), compose_job)


def test_tpe_learns_where_the_best_is(tmp_path: Path) -> None:
    made = study(tmp_path / "day" / "s", n_trials=24, startup_trials=8)
    launched: list[tuple[int, list[str]]] = []
    made.run(run_all(made, launched))
    assert [number for number, _ in launched] == list(range(24))
    distances = [distance(job) for _, job in launched]
    # Drawn at random, log-uniformly over three decades with the best a third in, they are 0.83 decades away on average.
    assert sum(distances[12:]) / 12 < 0.6
    number, value = made.best() or (0, 0.0)
    assert value == min(distances) == distances[number]


def test_a_study_that_was_cut_off_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole: list[tuple[int, list[str]]] = []
    alone = study(tmp_path / "day" / "a", n_trials=9, startup_trials=4)
    alone.run(run_all(alone, whole))

    first: list[tuple[int, list[str]]] = []
    cut = study(tmp_path / "day" / "b", n_trials=9, startup_trials=4)

    def launch(jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        for number, job in jobs:
            first.append((number, job))
            if number == 6:  # begun, and stopped by Ctrl-C
                write_run(cut.sweep.folder / "6", record(), training_rows(5), overrides=job)
                raise SweepInterrupted(2, cut.sweep.folder)
            finish(cut.sweep.folder / str(number), job)
            if number != 5:  # killed before its end was noted
                ended(number)

    with pytest.raises(SweepInterrupted):
        cut.run(launch)
    locks.release(cut.sweep.folder)
    again = study(tmp_path / "day" / "c", n_trials=9, startup_trials=4, resume=str(tmp_path / "day" / "b"))
    assert again.sweep.folder == tmp_path / "day" / "b"
    second: list[tuple[int, list[str]]] = []

    def go_on(jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        for number, job in jobs:
            second.append((number, job))
            if number == 6:
                (again.sweep.folder / "6").rename(again.sweep.folder / "half")
            finish(again.sweep.folder / str(number), job)
            ended(number)

    again.run(go_on)
    assert [number for number, _ in second] == [6, 7, 8]
    # Trial 6 was drawn before the end of trial 5 was known; from there on both studies know the same.
    assert first[:6] == whole[:6]
    assert second[0] == first[6]
    assert len(read_json(tmp_path / "day" / "b" / "sweep.json")["jobs"]) == 9
    locks.release(again.sweep.folder)
    longer = study(tmp_path / "day" / "d", n_trials=10, resume="auto")
    assert longer.sweep.folder == tmp_path / "day" / "b"
    third: list[tuple[int, list[str]]] = []
    longer.run(run_all(longer, third))
    assert [number for number, _ in third] == [9]


def test_another_search_is_not_taken_up(tmp_path: Path) -> None:
    made = study(tmp_path / "day" / "a", n_trials=1)
    locks.release(made.sweep.folder)
    other = "trainer.optimizer.lr=interval(1e-4,1e-1)"
    with pytest.raises(ValueError, match=r"has another search \(trainer\.optimizer\.lr\)"):
        study(tmp_path / "day" / "b", other, resume=str(made.sweep.folder))
    assert study(tmp_path / "day" / "b", other, resume="auto").sweep.folder.name == "b"


def test_failed_and_impossible_trials_are_known_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Of these widths, those that the heads do not divide cannot be built.
    made = study(tmp_path / "day" / "s", LR, "model.d_model=choice(64,65)", n_trials=8)

    def launch(jobs: Iterator[tuple[int, list[str]]], ended: Callable[[int], None]) -> None:
        for number, job in jobs:
            assert "model.d_model=64" in job
            if number % 2:
                finish(made.sweep.folder / str(number), job)
            else:
                (made.sweep.folder / str(number)).mkdir()
                (made.sweep.folder / str(number) / "failure.txt").write_text("out of luck\n")
            ended(number)

    statuses = made.run(launch)
    known = {trial["number"]: trial["state"] for trial in read_json(tmp_path / "day" / "s" / "study.json")["trials"]}
    assert len(statuses) == len(known) == 8
    for number, status in enumerate(statuses):
        assert known[number] == ("complete" if status == "finished" else "fail"), status
    assert any("model.d_model" in status for status in statuses)
    assert "is refused" in capsys.readouterr().err
    assert list(made.jobs()) == []


def told(made: Study, number: int, values: dict[int, float], monitor: str = "validation_loss") -> str | None:
    """What a job's callback says to the values of its evaluations: why it is pruned, or None."""
    (callback,) = pruning(made.sweep.folder / str(number), {"trainer": {"monitor": monitor}})
    callback.on_start(0, 30)
    try:
        for step, value in values.items():
            callback.on_metrics({"step": step, "loss": 9.0})
            callback.on_metrics({"step": step, monitor: value})
    except Pruned as why:
        return str(why)
    return None


def test_a_trial_behind_the_others_is_pruned(tmp_path: Path) -> None:
    made = study(tmp_path / "day" / "s", n_trials=9, pruner_startup_trials=2)
    jobs, folder = made.jobs(), tmp_path / "day" / "s"
    for level in (2.0, 3.0):
        number, job = next(jobs)
        assert told(made, number, {10: level + 1, 20: level, 30: level}) is None
        finish(folder / str(number), job)
        made.ended(number)
    number, job = next(jobs)
    # The median at step 20 is 2.5.
    assert told(made, number, {10: 3.4, 20: 2.4}) is None
    why = told(made, number, {10: 3.4, 20: 2.4, 25: 2.4}) or told(made, number, {30: 9.0})
    assert why is None  # no other trial was measured at 25, and one that has done its steps is left to be measured
    made.ended(number)  # interrupted: neither finished nor pruned
    assert [trial["state"] for trial in read_json_of(made)] == ["complete", "complete", "running"]
    number, job = next(jobs)
    assert told(made, number, {5: 99.0}) is None  # a fifth of 30 steps goes by before any is stopped
    why = told(made, number, {10: 3.4, 20: 2.6})
    assert why == "validation_loss 2.6 at step 20 was behind the other trials (median)"
    write_run(folder / str(number), record(), training_rows(20))
    (folder / str(number) / "pruned.txt").write_text(f"{why}\n")
    made.ended(number)
    assert job_status(folder / str(number)) == f"pruned: {why}"
    trial = read_json_of(made)[-1]
    assert (trial["state"], trial["value"]) == ("pruned", 2.6)
    assert pruning(folder / str(number), record()) == []  # a person may let it go on by itself
    assert pruning(tmp_path / "elsewhere", record()) == []


def read_json_of(made: Study) -> list[dict[str, Any]]:
    made.write()
    return read_json(made.sweep.folder / "study.json")["trials"]


def test_a_monitor_that_is_better_the_other_way_is_turned(tmp_path: Path) -> None:
    made = study(tmp_path / "day" / "s", n_trials=9, pruner_startup_trials=1)
    jobs = made.jobs()
    number, job = next(jobs)
    assert told(made, number, {10: 0.7}, "validation_accuracy") is None
    finish(tmp_path / "day" / "s" / str(number), job)
    made.ended(number)
    number, _ = next(jobs)
    assert told(made, number, {10: 0.8}, "validation_accuracy") is None
    number, _ = next(jobs)
    assert "validation_accuracy 0.6 at step 10" in (told(made, number, {10: 0.6}, "validation_accuracy") or "")


def test_the_page_of_a_search(tmp_path: Path) -> None:
    made = study(tmp_path / "day" / "s", LR, "model/gqa=choice(mha,mqa)", n_trials=6, startup_trials=3)
    made.run(run_all(made, []))
    known = read_json(tmp_path / "day" / "s" / "study.json")
    assert sum(known["importances"].values()) == pytest.approx(1)
    page = read_page(tmp_path / "day" / "s" / "report.html")
    assert "validation_loss, lower is better; trials: 6 finished" in page.text
    html = (tmp_path / "day" / "s" / "report.html").read_text()
    for name, words in {"history": "of each trial", "importances": "share of each", "slices": "along each"}.items():
        assert (tmp_path / "day" / "s" / f"{name}.png").stat().st_size > 3000
        assert re.search(f'<img class="picture" alt="[^"]*{words}', html)


def test_a_damaged_study_is_told(tmp_path: Path) -> None:
    made = study(tmp_path / "day" / "s", n_trials=1)
    locks.release(made.sweep.folder)
    (tmp_path / "day" / "s" / "study.journal").write_text("{torn\n{torn\n")
    with pytest.raises(ValueError, match=r"study\.journal: is damaged"):
        study(tmp_path / "day" / "t", n_trials=1, resume=str(tmp_path / "day" / "s"))
