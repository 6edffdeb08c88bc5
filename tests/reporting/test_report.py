"""The report on many runs, read back by other means than it was written with."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from records import Page, composed, language_model, markdown_rows, read_page, training_rows, write_run

from modern_llm.experiment.contract import RunFolder
from modern_llm.reporting.comparison.intervals import Mean, differ, t_quantile
from modern_llm.reporting.curves import thin
from modern_llm.reporting.pages.run import write_run_report
from modern_llm.reporting.record import RunRecord, find_runs, shell_quoted
from modern_llm.reporting.tables import write_csv
from modern_llm.tasks.report import Report

SMALL = ["model.d_model=32", "model.n_layers=1"]
NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \x00\x1b[31m \u202e & ]]> `|` \ud800 ${x}"


def reported(folder: Path, *patterns: str) -> Page:
    """A report on the runs, written to `folder`."""
    folder.mkdir()
    Report(runs=list(patterns)).run(RunFolder(folder, {}))
    return read_page(folder / "report.html")


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, f"{key}.{name}" if key else name)
    else:
        yield key, tree


def classification(accuracy: float) -> dict[str, Any]:
    return {
        "status": "finished",
        "metrics": {
            "accuracy": accuracy,
            "accuracy_low": accuracy - 0.02,
            "accuracy_high": accuracy + 0.02,
            "macro_f1": 0.5,
        },
        "headline": ["accuracy"],
        "errors": [{"text": f"wrong {i}", "label": i} for i in range(3)],
    }


# ---- finding runs


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    config = composed(*SMALL)
    for name in ("a/2", "a/10", "b/deep/er/1", "sweep/0"):
        write_run(tmp_path / name, config)
    step = tmp_path / "a/2/checkpoints/step_1"
    step.mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl"):
        (step / name).write_text("model: {}\n")
    write_run(tmp_path / "b/.hidden/1", config)
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"jobs": [["seed=1"], ["seed=2"], ["seed=3"]]}))
    (tmp_path / "sweep/1").mkdir()  # a job that was refused leaves its reason alone
    (tmp_path / "sweep/1/failure.txt").write_text("ConfigError: no\n")

    def names(*patterns: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_runs([f"{tmp_path}/{p}" for p in patterns])[0]]

    everything = ["a/2", "a/10", "b/deep/er/1", "sweep/0", "sweep/1"]
    assert names("") == everything
    assert names("**") == everything
    assert names("a/*", "b/**") == ["a/2", "a/10", "b/deep/er/1"]
    assert names("b", "") == ["b/deep/er/1", "a/2", "a/10", "sweep/0", "sweep/1"]
    assert names("a/2/config.yaml", "a/*/metrics.jsonl", "a/2/.") == ["a/2"]
    assert names("sweep") == ["sweep/0", "sweep/1"]
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert names("link/*", "a") == ["link/2", "link/10"]
    found, without = find_runs([f"{tmp_path}/a", f"{tmp_path}/nothing*", f"{tmp_path}/empty", "a**b"])
    assert len(found) == 2
    assert without == [f"{tmp_path}/nothing*", f"{tmp_path}/empty", "a**b"]


def test_a_folder_whose_name_is_a_pattern_is_a_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs[1]" / "x", composed(*SMALL))
    assert find_runs([f"{tmp_path}/runs[1]"])[0] == [folder]


def test_no_runs_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^task\.runs=\['.*/no\*'\]: no run is found from .*globs such as"):
        Report(runs=[f"{tmp_path}/no*"])


def test_reports_are_no_runs_and_a_pattern_without_runs_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", composed(*SMALL), result=language_model(5.0))
    write_run(tmp_path / "earlier", composed("task=report", f"task.runs=[{tmp_path}]"), result={"metrics": {"runs": 1}})
    page = reported(tmp_path / "out", f"{tmp_path}/*", f"{tmp_path}/b*")
    assert [row["run"] for row in page.table("runs")] == ["a"]
    assert f"'{tmp_path}/b*' led to no run" in page.text


# ---- what differs, and what came out


def test_every_setting_is_either_a_column_or_the_same_for_all(tmp_path: Path) -> None:
    commands = [["trainer.optimizer.lr=1e-3"], ["trainer.optimizer.lr=3e-4", "seed=7"], ["model.rope.theta=500"]]
    configs = [composed(*SMALL, *c) for c in commands]
    for number, (config, overrides) in enumerate(zip(configs, commands, strict=True)):
        write_run(tmp_path / "runs" / str(number), config, overrides=overrides, result=language_model(5.0 + number))
    page = reported(tmp_path / "out", f"{tmp_path}/runs")

    flat = [{k: v for k, v in leaves(c) if not str(v).startswith("${")} for c in configs]
    differing = {k for k in flat[0] if len({json.dumps(f.get(k)) for f in flat}) > 1}
    assert differing == {"trainer.optimizer.lr", "seed", "model.rope.theta"}
    rows = page.table("runs")
    for key in differing:
        head = key if key in rows[0] else key.rsplit(".", 1)[-1]
        assert [json.loads(row[head]) for row in rows] == [f[key] for f in flat]
    same = page.facts()
    expected = {k.removesuffix("._target_") for k in flat[0].keys() - differing}
    assert expected == same.keys()
    assert same["model.d_model"] == "32"
    assert same["model.use_attention_sinks"] == "false"
    assert same["model.moe"] == "null"
    assert same["trainer.optimizer"] == "Muon"
    assert same["model.residual"] == "{}"


def test_parts_of_different_kinds_are_named_and_their_own_settings_kept_apart(tmp_path: Path) -> None:
    choices = [["model/moe=dense"], ["model/moe=top2of8"], ["model/moe=top2of8", "model.moe.top_k=3"]]
    for number, overrides in enumerate(choices):
        write_run(tmp_path / "runs" / str(number), composed(*SMALL, *overrides), overrides=overrides)
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    rows = page.table("runs")
    assert [row["model.moe"] for row in rows] == ["null", "MoEConfig", "MoEConfig"]
    assert [row["model.moe.top_k"] for row in rows] == ["", "2", "3"]
    assert page.facts()["model.moe.n_experts"] == "8"
    assert {r["where"] for t in page.tables for r in t if r.get("key") == "model.moe.n_experts"} == {
        "model.moe=MoEConfig"
    }


def test_mixed_tasks_keep_every_metric_to_the_last_digit(tmp_path: Path) -> None:
    results = {"lm": language_model(5.123456789012345), "sst": classification(0.9123456789), "pt": classification(0.8)}
    for name, result in results.items():
        config = composed(*SMALL)
        if name != "lm":
            config["task"] = {"_target_": "modern_llm.tasks.classification.Classification", "data": {"name": "sst2"}}
        write_run(tmp_path / "runs" / name, config, result=result)
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    with (tmp_path / "out/runs.csv").open() as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    for name, result in results.items():
        for metric, value in result["metrics"].items():
            assert float(table[name][metric]) == value
        assert {m for m in ("accuracy", "validation_loss") if table[name][m]} == {"accuracy", "validation_loss"} & set(
            result["metrics"]
        )
    rows = {row["run"]: row for row in page.table("runs")}
    assert rows["sst"]["accuracy"] == "0.9123 | 0.8923 to 0.9323"
    assert rows["lm"]["accuracy"] == ""
    assert "accuracy_low" not in rows["lm"]
    assert rows["lm"]["task"] == "Pretraining"
    assert ("sst", "accuracy") in page.marks["best"]
    assert ("pt", "accuracy") not in page.marks["best"]
    assert all(head != "validation_loss" for _, head in page.marks["best"])  # nothing to choose from


def test_the_best_is_looked_for_among_runs_on_the_same_data_alone(tmp_path: Path) -> None:
    losses = {"a": ("python_docs", 5.0), "b": ("python_docs", 4.5), "c": ("wikitext2", 2.0), "d": ("wikitext2", 3.0)}
    for name, (task, loss) in losses.items():
        write_run(tmp_path / "runs" / name, composed(*SMALL, f"task={task}"), result=language_model(loss))
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert {run for run, head in page.marks["best"] if head == "validation_loss"} == {"b", "c"}
    assert "2 different data sets" in page.text
    assert "best validation_loss" not in page.text


def test_the_best_is_told_by_what_was_scored_and_not_by_what_it_is_called(tmp_path: Path) -> None:
    """Two runs of one data set, of which another left questions out: the record says on what each was measured."""
    on = {"all": ("x", 40), "again": ("x", 40), "fewer": ("x", 30), "other": ("y", 40)}
    for number, (name, (data, examples)) in enumerate(on.items()):
        result = classification(0.5 + number / 10)
        result["evaluated_on"] = {"": {"data": data, "examples": examples, "tokenizer": ""}}
        settings = composed("task=prompting", "model=gpt2", f"task.num_shots={number}")
        write_run(tmp_path / "runs" / name, settings, result=result)
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert {run for run, head in page.marks["best"] if head == "accuracy"} == {"again"}
    assert "3 different data sets" in page.text


def test_perplexity_per_token_is_not_compared_over_tokenizers(tmp_path: Path) -> None:
    for name, tokenizer in {"a": "bytes", "b": "bpe_4k"}.items():
        config = composed(*SMALL, "task=python_docs", f"task/tokenizer={tokenizer}")
        write_run(tmp_path / "runs" / name, config, result=language_model({"a": 1.0, "b": 5.0}[name]))
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    heads = {head for _, head in page.marks["best"]}
    assert "validation_bits_per_byte" in heads
    assert not heads & {"validation_loss", "validation_token_perplexity"}


# ---- seeds


def density_quantile(degrees: float) -> float:
    """97.5 % quantile of Student's t by adding up its density."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    step, x, area = 1e-3, 0.0, 0.0
    while area < 0.475:
        middle = x + step / 2
        area += scale * (1 + middle * middle / degrees) ** (-(degrees + 1) / 2) * step
        x += step
    return x


@pytest.mark.parametrize("degrees", [1, 1.5, 2, 2.5, 3, 7, 15.3, 30, 90, 1000, 5e4])
def test_quantiles_of_student_s_t(degrees: float) -> None:
    assert t_quantile(degrees) == pytest.approx(density_quantile(degrees), abs=2e-3)


def test_two_means_differ_where_welch_s_test_says_so() -> None:
    one, other = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5]
    variances = [statistics.variance(v) / len(v) for v in (one, other)]
    freedom = sum(variances) ** 2 / sum(v**2 / (len(one) - 1) for v in variances)
    threshold = density_quantile(freedom) * math.sqrt(sum(variances))
    gap = statistics.mean(other) - statistics.mean(one)
    for shift, expected in ((threshold - gap - 0.05, False), (threshold - gap + 0.05, True)):
        assert differ(Mean.of(one), Mean.of([v + shift for v in other])) is expected
    assert differ(Mean.of([1.0]), Mean.of([2.0, 2.1])) is None
    assert differ(Mean.of([1.0, 1.0]), Mean.of([1.5, 1.5])) is True


def test_means_over_seeds(tmp_path: Path) -> None:
    losses = {1e-3: [5.01, 5.03, 5.08], 2e-3: [5.02, 5.06, 5.03], 4e-3: [6.01, 6.02, 6.06]}
    for lr, values in losses.items():
        for seed, loss in enumerate(values):
            config = composed(*SMALL, f"trainer.optimizer.lr={lr}", f"seed={seed}")
            write_run(tmp_path / "runs" / f"{lr}_{seed}", config, result=language_model(loss))
    # A run that was done twice is no second seed, and one that failed is none at all.
    again = write_run(tmp_path / "runs/again", composed(*SMALL, "trainer.optimizer.lr=0.001", "seed=2"),
                      result=language_model(5.09))  # fmt: skip
    losses[1e-3][2] = 5.09
    os.utime(again / "result.json", (time.time() + 100,) * 2)
    failed = write_run(tmp_path / "runs/failed", composed(*SMALL, "trainer.optimizer.lr=0.001", "seed=9"))
    (failed / "failure.txt").write_text("OutOfMemoryError: all gone\n\nTraceback …\n")
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    rows = page.table("seeds")
    assert len(rows) == len(losses)
    for row in rows:
        values = losses[float(row["trainer.optimizer.lr"])]
        assert row["seeds"] == "3"
        value, interval = row["validation_loss"].split(" | ")
        mean, spread = value.removesuffix(" ≈").split(" ± ")
        assert float(mean) == pytest.approx(statistics.mean(values), abs=5e-4)
        assert float(spread) == pytest.approx(statistics.stdev(values), rel=0.05)
        half = density_quantile(2) * statistics.stdev(values) / math.sqrt(3)
        low, high = map(float, interval.split(" to "))
        assert (low, high) == pytest.approx((statistics.mean(values) - half, statistics.mean(values) + half), abs=2e-3)
    rates = {str(lr) for lr in losses}
    marked = {
        kind: {run for run, head in page.marks[kind] if head == "validation_loss" and run in rates}
        for kind in ("best", "near")
    }
    assert marked == {"best": {"0.002"}, "near": {"0.001"}}
    assert "1 run with the configuration and seed of another" in page.text
    assert "failed failed: OutOfMemoryError: all gone" in page.text
    assert "Mean ± sample standard deviation over seeds" in (tmp_path / "out/report.md").read_text()


# ---- the command that makes a run again


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["trainer.optimizer.lr=3e-4", "model/gqa=mqa", "seed=3"],
        ['task.samples.prompts=["It\'s", \'a b\', "$HOME `x` \\\\ !"]'],
        ["task=text", "task.data.train=[my notes/*.txt]"],
        ['task.samples.prompts=["two\nlines", "a\ttab"]'],
    ],
)
def test_the_command_can_be_pasted_and_composes_the_same_run(overrides: list[str], tmp_path: Path) -> None:
    config = composed(*SMALL, *overrides)
    write_run(tmp_path / "runs/a", config, overrides=[*SMALL, *overrides])
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    with (tmp_path / "out/runs.csv").open(newline="") as file:
        (command,) = (row["command"] for row in csv.DictReader(file))
    assert command in page.text
    echo = subprocess.run(
        ["bash", "-c", f"python() {{ printf '%s\\0' \"$@\"; }}; {command}"],
        capture_output=True,
        check=True,
        cwd=tmp_path,
    )
    words = echo.stdout.decode().split("\0")[:-1]
    assert words[0] == "launch.py"
    assert composed(*words[1:]) == config


def test_commands_of_resumed_runs_and_of_jobs(tmp_path: Path) -> None:
    config = composed(*SMALL)
    resumed = write_run(tmp_path / "resumed", config, overrides=["seed=1", "trainer.max_steps=4"])
    later = {
        "overrides": ["resume=auto", "trainer.max_steps=8"],
        "command": "launch.py resume=auto trainer.max_steps=8",
    }
    with (resumed / "sittings.jsonl").open("a") as file:
        file.write(json.dumps(later) + "\n")
    assert RunRecord.read(resumed).command == "python launch.py seed=1 trainer.max_steps=8"
    typed = "launch.py --config-dir my experiment=ablation_gqa hydra.run.dir=x hydra.mode=RUN"
    overrides = ["experiment=ablation_gqa", "model/gqa=mqa"]
    job = write_run(tmp_path / "sweep/0", config, overrides=overrides, command=typed)
    expected = "python launch.py --config-dir my experiment=ablation_gqa model/gqa=mqa hydra.mode=RUN"
    assert RunRecord.read(job).command == expected
    (tmp_path / "sweep/sweep.json").write_text(json.dumps({"jobs": [[], ["model.head_dim=7"], ["seed=1"]]}))
    (tmp_path / "sweep/1").mkdir()
    (tmp_path / "sweep/1/failure.txt").write_text("ended with exit status 1\n")
    assert RunRecord.read(tmp_path / "sweep/1").command == "python launch.py model.head_dim=7 hydra.mode=RUN"
    page = reported(tmp_path / "out", f"{tmp_path}/sweep", f"{tmp_path}/resumed")
    assert "continued with other settings" in page.text
    assert "1 of 3 jobs of this sweep have not run" in page.text
    assert "sweep/1 failed: ended with exit status 1" in page.text


@pytest.mark.parametrize("word", ["plain", "it's", 'a "b"', "line\nline", "\x1b[0m\t'\\", "\u202e", "", "ünï"])
def test_quoted_words_reach_a_program_unchanged(word: str) -> None:
    quoted = shell_quoted(word)
    assert not any(ord(c) < 32 for c in quoted)
    environment = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}
    echo = subprocess.run(["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env=environment)
    assert echo.stdout.decode() == word


# ---- bad input


def test_runs_of_different_code_are_told(tmp_path: Path) -> None:
    for number, code in enumerate(["aaaa", "aaaa", "bbbb-dirty"]):
        write_run(tmp_path / "runs" / str(number), composed(*SMALL), result=language_model(5.0 + number), code=code)
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert "2 versions of the code: aaaa (2 runs), bbbb-dirty (1 run)" in page.text
    assert "1 run had uncommitted changes" in page.text
    assert [row["code"] for row in page.table("runs")] == ["aaaa", "aaaa", "bbbb-dirty"]
    assert "2 versions of the code" in (tmp_path / "out/report.md").read_text()


def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path) -> None:
    rows = training_rows(20)
    folder = write_run(tmp_path / "runs/a", composed(*SMALL), rows, language_model(5.0))
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole[:-15])
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert "a: metrics.jsonl: its last line is torn" in page.text
    places, values = page.data()["runs"][0]["series"]["loss"]
    assert values == pytest.approx([row["loss"] for row in rows if "loss" in row], rel=1e-5)
    assert [page.data()["runs"][0]["step"][p] for p in places] == list(range(1, 21))
    assert len(page.data()["runs"][0]["series"]["validation_loss"][1]) == 1  # the second one was torn


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 3.0}\n\x00\x00\n[1]\n{"step": 2, "loss": 2.5}\n', "2 damaged lines"),
        ("result.json", '{"status": "fini', "result.json is damaged"),
        ("result.json", "[]", "result.json is no table"),
        ("result.json", '{"metrics": [1]}', "metrics is no table"),
        ("result.json", '{"metrics": {"loss": 3}, "samples": {"a": 1}, "headline": 7}', "samples is no list"),
        ("result.json", '{"headline": [[1]], "objective_metric": {}, "errors": [1], "metrics": {"a": "x"}}', "good"),
        ("sittings.jsonl", '{"overrides": 7, "code": [1], "packages": "x", "time": {}}\n', "versions of the code"),
        ("metrics.jsonl", '{"step": "x", "loss": "y"}\n{"step": 1e400, "loss": 3}\n{"loss": 2}\n', "good"),
        ("config.yaml", "model: {d_model: [\n", "config.yaml is damaged"),
        ("config.yaml", "just text", "config.yaml is no table"),
        ("sittings.jsonl", '{"overrides": ["seed=1"', "sittings.jsonl: its last line is torn"),
        ("metrics.jsonl", b"\xff\xfe\x00broken", "torn"),
        ("result.json", f'{{"metrics": {{"validation_loss": {"9" * 400}}}}}', "good"),
        ("result.json", "[" * 200_000 + "]" * 200_000, "nested too deeply"),
        (
            "metrics.jsonl",
            f'{{"step": 1, "loss": {"[" * 200_000}\n{{"step": {"9" * 400}, "loss": 3}}\n',
            "damaged line",
        ),
        ("config.yaml", "a: " + "[" * 200_000 + "]" * 200_000, "config.yaml is damaged"),
        ("config.yaml", "a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("config.yaml", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "YAML alias"),
        ("config.yaml", f"name: {'x' * 5_000_000}", "are the most"),
        ("sittings.jsonl", f'{{"time": {"9" * 400}, "overrides": [{"9" * 400}]}}\n', "good"),
    ],
)
def test_a_damaged_file_is_told_and_the_rest_is_shown(
    name: str, content: str | bytes, told: str, tmp_path: Path
) -> None:
    for run in ("good", "bad"):
        write_run(tmp_path / "runs" / run, composed(*SMALL), training_rows(5), language_model(5.0))
    (tmp_path / "runs/bad" / name).write_bytes(content.encode() if isinstance(content, str) else content)
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert told in page.text
    assert {row["run"] for row in page.table("runs")} == {"good", "bad"}
    assert page.facts()["model.d_model"] == "32"
    bad = read_page(write_run_report(tmp_path / "runs/bad")["report"])
    assert told in bad.text or told in ("good", "versions of the code")


def test_a_run_that_is_still_going(tmp_path: Path) -> None:
    config = composed(*SMALL, "trainer.max_steps=200")
    going = write_run(tmp_path / "runs/going", config, training_rows(30))
    write_run(tmp_path / "runs/just_begun", config)
    for name, hours in {"metrics.jsonl": 3.1, "config.yaml": 9, "sittings.jsonl": 9}.items():
        os.utime(going / name, (time.time() - hours * 3600,) * 2)
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    rows = {row["run"]: row for row in page.table("runs")}
    assert rows["going"]["status"] == "interrupted"
    assert "interrupted: step 30 of 200" in page.text
    assert "interrupted: no metrics yet" in page.text
    assert "2 runs interrupted" in page.text
    assert "step 30 of 200, wrote 3 hours ago" in page.text
    assert len(page.data()["runs"][0]["series"]["loss"][1]) == 30


def test_a_finished_run_that_went_on_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", composed(*SMALL), training_rows(60), language_model(5.0, steps=40))
    assert (
        "1 run with final metrics older than the curve: a (step 40 of 60)"
        in reported(tmp_path / "out", f"{tmp_path}/runs").text
    )


def test_a_hundred_thousand_points_keep_their_extremes(tmp_path: Path) -> None:
    rows = [{"step": i, "loss": 3 + math.sin(i / 5000), "tokens": 10 * i} for i in range(1, 100_001)]
    rows[54_321]["loss"], rows[77_777]["loss"], rows[500]["loss"] = 99.5, -7.25, float("nan")
    folder = tmp_path / "runs/long"
    write_run(folder, composed(*SMALL), result=language_model(5.0))
    plain = [row | ({"loss": None} if math.isnan(row["loss"]) else {}) for row in rows]  # as the log writes it
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    run, thinned = page.data()["runs"][0], page.data()["thinned"]
    places, values = run["series"]["loss"]
    at = {run["step"][place]: value for place, value in zip(places, values, strict=True)}
    assert 2 <= len(at) <= 4500
    assert (at[54_322], at[77_778], at[501]) == (99.5, -7.25, None)
    assert min(at) == 1
    assert max(at) == 100_000
    assert all(run["tokens"][place] == 10 * run["step"][place] for place in places)
    for start in range(0, 100_000, thinned):  # nothing is lost between two kept values
        bucket = [row["loss"] for row in plain[start : start + thinned] if row["loss"] is not None]
        kept = [at[step] for step in range(start + 1, start + thinned + 1) if at.get(step) is not None]
        assert min(kept) == pytest.approx(min(bucket), rel=1e-5)
        assert max(kept) == pytest.approx(max(bucket), rel=1e-5)
    assert (tmp_path / "out/report.html").stat().st_size < 1e6


def test_thinning_keeps_what_is_short_and_bounds_what_is_long() -> None:
    assert thin([3.0, 1.0, 2.0], 3) == [0, 1, 2]
    assert thin([], 10) == []
    for length in (11, 12, 97, 1000, 1001):
        kept = thin([math.sin(i) for i in range(length)], 10)
        assert kept == sorted(set(kept))
        assert {0, length - 1} <= set(kept)
        assert len(kept) <= 12


def test_an_evaluation_that_tells_its_step_alone_stands_between_its_neighbours(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "loss": 3.0, "tokens": 100, "seconds": 1.0},
        {"step": 15, "validation_loss": 3.1},
        {"step": 20, "loss": 2.5, "tokens": 300, "seconds": 2.0},
        {"step": 20, "validation_loss": 2.6},
        {"step": 30, "validation_loss": 2.2},
    ]
    write_run(tmp_path / "runs/a", composed(*SMALL), rows)
    run = reported(tmp_path / "out", f"{tmp_path}/runs").data()["runs"][0]
    assert run["tokens"] == [100, 200, 300, 300, None]
    assert run["seconds"] == [1, 1.5, 2, 2, None]


def test_markup_and_control_characters_are_shown_and_do_nothing(tmp_path: Path) -> None:
    config = composed(*SMALL)
    config["task"]["samples"]["prompts"] = [
        NASTY.replace("\x00", "").replace("\x1b", "").replace("\ud800", "").replace("$", "")
    ]
    result = language_model(5.0, samples=[{"prompt": NASTY, "text": f"{NASTY}\nsecond line"}, "no sample", {"text": 7}])
    result["runtime"]["device_name"] = NASTY
    folder = write_run(tmp_path / "runs/<b>a|b&amp;", config, training_rows(3), result, [f"x='{NASTY}'"], code=NASTY)
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, NASTY: 1.0}) + "\n")
    failed = write_run(tmp_path / "runs/c", config)
    (failed / "failure.txt").write_bytes(NASTY.encode(errors="replace") + b"\xff\n")
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert page.table("runs")[0]["run"] == "<b>a|b&amp;"
    assert "␀␛[31m ⟦U+202E⟧ & ]]> `|` ⟦U+D800⟧ ${x}" in page.text
    assert page.text.count("<script>alert(1)</script>") > 5
    assert "second line" in page.text
    assert not any(name.startswith("on") for _, given in page.tags for name in given)
    assert "img" not in {tag for tag, _ in page.tags}
    assert [kind for kind, _ in page.scripts] == ["application/json", ""]
    assert NASTY in page.data()["metrics"]
    html = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert not {c for c in html if ord(c) < 32} - {"\n", "\t"}
    text = (tmp_path / "out/report.md").read_text()
    assert "<script" not in text.split("## Run them again")[0]
    assert len({len(row) for row in markdown_rows(text)}) == 1


def test_the_page_forbids_everything_but_itself(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", composed(*SMALL), training_rows(5), language_model(5.0))
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    (policy,) = (given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    script = page.scripts[-1][1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in (policy or "")
    assert f"script-src 'sha256-{digest}'" in (policy or "")
    assert "unsafe" not in (policy or "")
    for _, given in page.tags:
        for name in ("src", "href", "action", "data", "srcset"):
            assert (given.get(name) or "data:").startswith("data:")


# ---- many


def test_five_hundred_runs(tmp_path: Path) -> None:
    config = composed(*SMALL)
    samples = [{"prompt": f"prompt {i}", "text": "word " * 100} for i in range(3)]
    for number in range(500):
        tree = config | {"seed": number % 10, "name": "x"}
        tree["trainer"] = config["trainer"] | {"batch_size": 1 + number // 10}
        run = tmp_path / "runs" / str(number)
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
        rows = [row | {f"metric_{i}": row["step"] * i + number for i in range(6)} for row in training_rows(60)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (run / "sittings.jsonl").write_text(json.dumps({"overrides": [f"seed={number % 10}"], "code": "abc"}) + "\n")
        result = language_model(5 + math.sin(number) / 10, samples=samples)
        (run / "result.json").write_text(json.dumps(result))
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert (tmp_path / "out/report.html").stat().st_size < 10e6
    assert [row["run"] for row in page.table("runs")] == [str(n) for n in range(500)]
    assert len(page.table("seeds")) == 50
    losses = [5 + math.sin(n) / 10 for n in range(500)]
    assert {run for run, head in page.marks["best"] if head == "validation_loss"} >= {str(losses.index(min(losses)))}
    data = page.data()
    for number in (0, 499):
        values = data["runs"][number]["series"]["metric_5"][1]
        assert (values[0], values[-1]) == (5 + number, 300 + number)
    assert len(markdown_rows((tmp_path / "out/report.md").read_text())) == 500 + 2 + 50 + 2


def test_what_measures_nothing_by_itself_is_no_row(tmp_path: Path) -> None:
    write_run(tmp_path / "runs/a", composed(*SMALL), training_rows(5), language_model(5.0))
    write_run(tmp_path / "runs/a.before_1", composed(*SMALL), training_rows(5), language_model(5.0))
    for name, overrides in {"plan": ["experiment=smoke"], "doctor": ["task=doctor"],
                            "chat": ["task=chat", "model=gpt2"], "report": ["task=report"]}.items():  # fmt: skip
        write_run(tmp_path / "runs" / name, composed(*overrides), result={"metrics": {"x": 1}})
    page = reported(tmp_path / "out", f"{tmp_path}/runs")
    assert [row["run"] for row in page.table("runs")] == ["a"]


def test_cells_that_a_spreadsheet_would_compute_are_texts(tmp_path: Path) -> None:
    rows = [{"a": "=1+1", "b": -1.5, "c": "-2e-3"}, {"a": "@x", "b": "+cmd", "c": "plain"}]
    with write_csv(["a", "b", "c"], rows, tmp_path / "t.csv").open() as file:
        read = list(csv.DictReader(file))
    assert read == [{"a": "'=1+1", "b": "-1.5", "c": "-2e-3"}, {"a": "'@x", "b": "'+cmd", "c": "plain"}]
