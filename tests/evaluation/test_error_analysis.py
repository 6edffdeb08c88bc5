"""Groups of errors against counting by hand, and against scikit-learn and scipy's textbook values."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import read_page, write_run
from sklearn.metrics import confusion_matrix

from modern_llm.data.labelled import Example
from modern_llm.evaluation import error_analysis as analysis
from modern_llm.evaluation.metrics.scoring import score_classes, score_texts
from modern_llm.experiment.contract import RunFolder
from modern_llm.models.decoding.generation import Continuation
from modern_llm.tasks.error_analysis import ErrorAnalysis

LABELS = ["bad", "good", "so-so"]


def classified(count: int = 60) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    scores, right = random.normal(size=(count, 3)), random.integers(0, 3, count).tolist()
    examples = [Example(i, {}, label, LABELS[label]) for i, label in enumerate(right)]
    inputs = ["word " * (1 + i % 17) for i in range(count)]
    return [vars(p) for p in score_classes(["accuracy", "macro_f1"], LABELS, scores, examples, inputs, 0).predictions]


def solved() -> list[dict[str, Any]]:
    """A right answer, and one of each kind of failure."""
    answers = [("It is 4.\n#### 4", True), ("I do not know", True), ("#### 5", True), ("2 and 2 and then", False)]
    examples = [Example(i, {}, None, "#### 4") for i in range(4)]
    written = [Continuation(text, ended) for text, ended in answers]
    return [
        vars(p)
        for p in score_texts(["strict_match", "flexible_match"], written, examples, ["2 + 2?"] * 4, 0).predictions
    ]


@pytest.mark.parametrize(
    ("wrong", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (1, 100, 0.0018, 0.0545)]
)
def test_intervals_are_wilson_s(wrong: int, count: int, low: float, high: float) -> None:
    """Newcombe 1998, table I, and R's prop.test(correct = FALSE)."""
    assert analysis.wilson(wrong, count) == pytest.approx((low, high), abs=1e-4)


def test_groups_hold_every_answer_once_and_count_its_errors() -> None:
    rows = classified()
    for table in (analysis.by_length(rows, 4), analysis.by_label(rows), analysis.by_confidence(rows)):
        assert sum(row["examples"] for row in table) == len(rows)
        assert sum(row["errors"] for row in table) == sum(row["score"] == 0 for row in rows)
    lengths = [row["group"] for row in analysis.by_length(rows, 4)]
    assert lengths[0].startswith("1 to ")
    assert lengths[-1].endswith("to 17 words")
    good = next(row for row in analysis.by_label(rows) if row["group"] == "good")
    assert good["errors"] == sum(row["reference"] == "good" and row["prediction"] != "good" for row in rows)


def test_confusions_are_scikit_learn_s() -> None:
    rows = classified()
    expected = confusion_matrix([r["reference"] for r in rows], [r["prediction"] for r in rows], labels=LABELS)
    assert [[row[label] for label in LABELS] for row in analysis.confusion(rows)] == expected.tolist()


def test_a_model_that_is_as_right_as_it_is_sure_is_calibrated() -> None:
    def rows(right: int) -> list[dict[str, Any]]:
        return [{"detail": "p(good) = 0.750", "score": float(i < right)} for i in range(100)]

    assert analysis.calibration_error(rows(75)) == pytest.approx(0.0)
    assert analysis.calibration_error(rows(25)) == pytest.approx(0.5)
    assert analysis.calibration_error([{"detail": "no number", "score": 0.0}]) is None


def test_kinds_of_failure_are_told_apart() -> None:
    assert {row["group"]: row["errors"] for row in analysis.by_kind(solved())} == {
        "no number": 1, "wrong number": 1, "cut off": 1,
    }  # fmt: skip


def test_the_worst_come_first() -> None:
    rows = classified()
    found = analysis.worst(rows, 5)
    assert len(found) == 5
    surest = max((row for row in rows if row["score"] == 0), key=lambda row: analysis.confidence(row) or 0)
    assert found[0] == surest


@pytest.mark.parametrize("inputs", [["a"], ["a"] * 9, ["a", "a b"], ["", "x " * 500]])
def test_lengths_of_few_kinds_make_few_groups(inputs: list[str]) -> None:
    table = analysis.by_length([{"input": text, "score": 1.0} for text in inputs], 4)
    assert sum(row["examples"] for row in table) == len(inputs)
    assert len(table) <= len({*inputs})


def test_a_page_tells_it_and_no_answer_acts(tmp_path: Path) -> None:
    config = {"name": "x", "task": {"data": {"metrics": ["accuracy"]}}}
    run = write_run(tmp_path / "run", config, result={"metrics": {}})
    rows = classified()
    rows[0] |= {"input": "<script>alert(1)</script>\x1b", "score": 0.0, "badness": 2.0}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "predictions.jsonl").write_text(lines + '{"torn": ')
    out = tmp_path / "out"
    out.mkdir()
    metrics = ErrorAnalysis(str(run), worst=3).run(RunFolder(out, {}))
    assert metrics["error_share"] == pytest.approx(sum(row["score"] < 1 for row in rows) / len(rows))
    page = read_page(out / "report.html")
    assert "<script>alert(1)</script>␛" in page.text
    assert "its last line is torn" in page.text
    assert not any("alert" in content for _, content in page.scripts)
    with (out / "groups.csv").open() as file:
        assert {row["by"] for row in csv.DictReader(file)} == {"length of the input", "right label", "confidence"}
    assert len((out / "worst.jsonl").read_text().splitlines()) == 3


def test_nothing_heavy_is_imported() -> None:
    parts = "modern_llm.tasks.error_analysis, modern_llm.evaluation.error_analysis"
    code = f"import sys, {parts}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_run_without_answers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.path=.*holds no predictions\.jsonl"):
        ErrorAnalysis(str(tmp_path))
