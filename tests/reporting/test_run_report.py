"""The page of one run, for any task."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from records import composed, language_model, read_page, training_rows, write_run

from modern_llm.reporting.pages.run import write_run_report
from modern_llm.reporting.sweep_report import write_sweep_report
from modern_llm.reporting.tables import shown

SMALL = ["model.d_model=32", "model.n_layers=1"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(5.0, "5.000"), (0.00012345, "0.0001234"), (999.96, "1,000"), (12345.6, "12,346"), (1e30, "1.000e+30"), (7, "7"),
     (1234567, "1,234,567"), (True, "true"), (None, ""), (float("nan"), "nan"), (float("-inf"), "-inf")],
)  # fmt: skip
def test_values_as_a_person_reads_them(value: Any, text: str) -> None:
    assert shown(value) == text


def cards(text: str) -> str:
    """The page's text before its first section."""
    return text.split("Final metrics")[0]


def test_a_language_model(tmp_path: Path) -> None:
    headline = ["validation_bits_per_byte"]
    samples = [{"prompt": "The <unk>", "text": " cat & dog"}]
    result = language_model(5.0, headline=headline, samples=samples, notes=["one batch was skipped"])
    folder = write_run(tmp_path / "a", composed(*SMALL), training_rows(20), result, ["seed=0"])
    written = write_run_report(folder)
    assert set(written) == {"curve", "metrics", "report"}
    assert written["curve"].read_bytes().startswith(b"\x89PNG")
    page = read_page(written["report"])
    assert "validation_bits_per_byte1.852" in cards(page.text)
    assert "validation_loss5.000" not in cards(page.text)
    assert "The <unk> cat & dog" in page.text
    assert "one batch was skipped" in page.text
    assert "python launch.py seed=0" in page.text
    assert {**page.facts("what")}["validation.counts.bytes"] == "5,000"
    values = {row["metric"]: row["value"] for table in page.tables for row in table if "metric" in row}
    assert values.keys() == result["metrics"].keys()
    with written["metrics"].open() as file:
        assert [float(row["loss"]) for row in csv.DictReader(file) if row["loss"]] == [
            row["loss"] for row in training_rows(20) if "loss" in row
        ]


def test_a_task_without_training_has_cards_intervals_errors_and_no_curve(tmp_path: Path) -> None:
    errors = [{"text": f"sentence {i}", "label": 1, "predicted": 0, "spans": [1, 2]} for i in range(250)]
    result = {
        "status": "finished",
        "metrics": {"accuracy": 0.91, "accuracy_low": 0.9, "accuracy_high": 0.92, "examples": 872},
        "headline": ["accuracy", "no_such_metric"],
        "errors": errors,
    }
    folder = write_run(tmp_path / "a", composed(*SMALL), result=result)
    written = write_run_report(folder)
    assert set(written) == {"report"}
    assert not (folder / "loss.png").exists()
    page = read_page(written["report"])
    assert "accuracy0.91000.9000 to 0.9200" in cards(page.text)
    assert "Curves" not in page.text
    assert "How perplexity was measured" not in page.text
    assert "The first 200 of 250" in page.text
    (table,) = (table for table in page.tables if table and "text" in table[0])
    assert table[3] == {"text": "sentence 3", "label": "1", "predicted": "0", "spans": "[1, 2]"}


def test_without_a_headline_the_objective_and_what_has_a_direction_stand_in_front(tmp_path: Path) -> None:
    result = {
        "metrics": {"seconds": 3.0, "rouge1": 0.31, "odd_number": 7, "exact_match": 0.2},
        "objective_metric": "odd_number",
    }
    page = read_page(write_run_report(write_run(tmp_path / "a", composed(*SMALL), result=result))["report"])
    shown = cards(page.text)
    assert shown.index("odd_number") < shown.index("rouge1") < shown.index("exact_match")
    assert "seconds" not in shown


@pytest.mark.parametrize("failed", [True, False])
def test_a_run_without_a_result_has_a_page(failed: bool, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", composed(*SMALL), training_rows(3))
    if failed:
        (folder / "failure.txt").write_text("RuntimeError: <out> of luck\n")
    page = read_page(write_run_report(folder)["report"])
    assert ("failed: RuntimeError: <out> of luck" in page.text) is failed
    assert len(page.data()["runs"][0]["series"]["loss"][1]) == 3


def test_a_sweep_tells_its_jobs_by_their_overrides(tmp_path: Path) -> None:
    jobs = [
        ["model/gqa=mha", "seed=1"],
        ["model/gqa=mha", "seed=2"],
        ["model/gqa=mqa", "seed=1"],
        ["model/gqa=mqa", "seed=2"],
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    for number, job in enumerate(jobs[:3]):
        result = language_model(5 + number / 10) if number < 2 else None
        write_run(tmp_path / str(number), composed(*SMALL, *job), training_rows(5), result, job)
    written = write_sweep_report(tmp_path)
    with written["csv"].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model/gqa"] for row in rows] == ["mha", "mha", "mqa", "mqa"]
    assert [row["status"] for row in rows] == ["finished", "finished", "interrupted", "not run"]
    assert [row["validation_loss"] for row in rows] == ["5.0", "5.1", "", ""]
    page = read_page(written["report"])
    assert [row["job"] for row in page.table("runs")] == ["0", "1", "2", "3"]
    (mean,) = page.table("seeds")
    assert mean["model/gqa"] == "mha"
    assert mean["validation_loss"].startswith("5.050 ± 0.071")
    assert "Mean ± sample standard deviation over seeds" in written["table"].read_text()
