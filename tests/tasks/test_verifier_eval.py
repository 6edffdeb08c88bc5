"""Verifiers on other answers: the figures of their own run again, the same choice among samples, and refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bases import trained_from_scratch
from made_models import byte_tokenizer
from test_verifier import ENCODER, HARDWARE, SUMS, WARM, result, task

from modern_llm.config.instantiate import describe
from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.rows import FileRows
from modern_llm.data.solutions.settings import ProblemData, SolutionData
from modern_llm.experiment.contract import RunFolder
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun
from modern_llm.tasks.best_of_n import CURVE, BestOfN
from modern_llm.tasks.verifier_eval import VerifierEval


def run(made: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(describe({"task": made}))
    return made.run(RunFolder(folder, {}))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an encoder."""
    folder = tmp_path_factory.mktemp("verifier") / "run"
    run(task(None, ENCODER, 8), folder)
    return folder


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """The run of best of n with that verifier: answers of a model that has learned nothing, which hits one now and
    then."""
    folder = tmp_path_factory.mktemp("sampled")
    base = trained_from_scratch(folder / "base", byte_tokenizer())
    path = written(folder / "problems.jsonl", [{"question": f"Say {p}.", "answer": 1 + p % 9} for p in range(24)])
    problems = ProblemData(FileRows(path, path, 1))
    solver = ModelFromRun(str(base), FullFinetuning())
    run(BestOfN(solver, HARDWARE, problems, samples=5, asking=WARM, verifier=str(trained)), folder / "run")
    return folder / "run"


class TestMarkedAnswers:
    def test_the_figures_are_those_of_the_training_run(self, trained: Path, tmp_path: Path) -> None:
        metrics = run(VerifierEval(str(trained), HARDWARE, SUMS), tmp_path / "run")
        judged = [n for n in metrics if n not in ("problems", "answers", "peak_memory_gb")]
        assert {"accuracy", "roc_auc_low", "brier", "ece_high", "uncalibrated_ece_low", "uncalibrated_accuracy"} <= {
            *judged
        }
        assert {n: metrics[n] for n in judged} == {n: result(trained)["metrics"][n] for n in judged}
        for name in ("predictions.jsonl", "errors.jsonl"):
            assert (tmp_path / "run" / name).read_text() == (trained / name).read_text()
        found = result(tmp_path / "run")
        assert found["tables"] == result(trained)["tables"]
        assert (metrics["problems"], metrics["answers"]) == (6, 12)
        assert found["protocol"]["left_out_because_the_verifier_knows_them"] == 0
        page = (tmp_path / "run" / "report.html").read_text()
        assert 'alt="Reliability" src="data:image/png' in page
        assert (tmp_path / "run" / "calibration.png").stat().st_size > 1000

    def test_a_sample_is_the_one_of_the_training_run(self, tmp_path: Path) -> None:
        run(task(None, ENCODER, 2, max_evaluation_problems=3, seed=5), tmp_path / "other")
        metrics = run(
            VerifierEval(str(tmp_path / "other"), HARDWARE, SUMS, seed=5, max_evaluation_problems=3), tmp_path / "run"
        )
        assert metrics["problems"] == 3
        assert metrics["brier"] == result(tmp_path / "other")["metrics"]["brier"]

    def test_known_problems_are_left_out_before_the_sample_is_drawn(
        self, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        every = Arithmetic("solutions", largest=5, held_out=6)
        rows = [row for part in ("train", "selection", "evaluation") for row in every.rows(part, None).rows]  # type: ignore[arg-type]
        path = written(tmp_path / "a.jsonl", rows)
        data = SolutionData(FileRows(path, path, 1))
        metrics = run(VerifierEval(str(trained), HARDWARE, data), tmp_path / "all")
        assert metrics["problems"] == 6
        assert metrics["accuracy"] == result(trained)["metrics"]["accuracy"]
        assert result(tmp_path / "all")["protocol"]["left_out_because_the_verifier_knows_them"] == 30
        assert "30 problems are left out: the verifier was trained" in capsys.readouterr().err
        made = VerifierEval(str(trained), HARDWARE, data, max_evaluation_problems=4)
        assert run(made, tmp_path / "some")["problems"] == 4

    def test_no_problem_is_left(self, trained: Path, tmp_path: Path) -> None:
        rows = Arithmetic("solutions", largest=5, held_out=6).rows("train", None).rows
        path = written(tmp_path / "a.jsonl", rows)
        with pytest.raises(ValueError, match=r"a\.jsonl: the verifier was trained or calibrated on all of the 24 prob"):
            run(VerifierEval(str(trained), HARDWARE, SolutionData(FileRows(path, path, 1))), tmp_path / "run")


class TestGain:
    def test_it_is_what_best_of_n_found_with_the_same_verifier(
        self, trained: Path, sampled: Path, tmp_path: Path
    ) -> None:
        before = (sampled / "samples.jsonl").read_bytes()
        metrics = run(VerifierEval(str(trained), HARDWARE, SUMS, best_of_n=str(sampled)), tmp_path / "run")
        found, own = result(tmp_path / "run"), result(sampled)
        assert found["tables"][CURVE] == own["tables"][CURVE]
        assert any(row["solved"] > 0 for row in own["tables"][CURVE])
        assert {row["k"] for row in found["tables"][CURVE]} == {1, 2, 4, 5}
        shared = [n for n in own["metrics"] if "_em" in n or "_gain" in n or n.startswith("pass_at")]
        assert {n: metrics[n] for n in shared} == {n: own["metrics"][n] for n in shared}
        assert lines(tmp_path / "run" / "choices.jsonl") == lines(sampled / "predictions.jsonl")
        assert "verifier_gain" in found["headline"]
        assert 'alt="Problems solved" src="data:image/png' in (tmp_path / "run" / "report.html").read_text()
        assert (sampled / "samples.jsonl").read_bytes() == before

    def test_the_gain_is_by_problem(self, sampled: Path) -> None:
        greedy = np.mean([row["greedy_right"] for row in lines(sampled / "predictions.jsonl")])
        for row in result(sampled)["tables"][CURVE]:
            assert row["gain"] == pytest.approx(row["solved"] - greedy)
            assert row["gain_low"] <= row["gain"] <= row["gain_high"]

    def test_another_verifier_chooses_otherwise_and_its_own_problems_are_left_out(
        self, sampled: Path, tmp_path: Path
    ) -> None:
        rows = [{"question": f"Say {p}.", "answer": f"{p % 3}{j}", "correct": (p + j) % 3 == 0}
                for p in range(20) for j in range(2)]  # fmt: skip
        data = SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 4))
        run(task(None, ENCODER, 2, data=data), tmp_path / "other")
        run(VerifierEval(str(tmp_path / "other"), HARDWARE, data, best_of_n=str(sampled)), tmp_path / "run")
        facts = result(tmp_path / "run")["protocol"]["best_of_n"]
        assert (facts["problems"], facts["left_out_because_the_verifier_knows_them"]) == (8, 16)
        first = {row["index"]: row for row in lines(sampled / "predictions.jsonl")}
        for row in lines(tmp_path / "run" / "choices.jsonl"):
            assert row["majority_answer"] == first[row["index"]]["majority_answer"]
            assert row["probabilities"] != first[row["index"]]["probabilities"]

    def test_no_problem_is_left(self, sampled: Path, tmp_path: Path) -> None:
        rows = [{"question": f"Say {p}.", "answer": str(j), "correct": j == p % 2} for p in range(30) for j in range(2)]
        data = SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3))
        run(task(None, ENCODER, 2, data=data), tmp_path / "other")
        kept = lines(sampled / "predictions.jsonl")
        known = {row["question"] for row in rows} - {r["question"] for r in lines(tmp_path / "other/predictions.jsonl")}
        shutil.copytree(sampled, tmp_path / "sampled")
        written(tmp_path / "sampled" / "predictions.jsonl", [row for row in kept if row["question"] in known])
        made = VerifierEval(str(tmp_path / "other"), HARDWARE, data, best_of_n=str(tmp_path / "sampled"))
        with pytest.raises(ValueError, match=r"trained on all of the \d+ problems.*task\.best_of_n=null"):
            run(made, tmp_path / "run")

    def test_a_damaged_record(self, trained: Path, sampled: Path, tmp_path: Path) -> None:
        shutil.copytree(sampled, tmp_path / "sampled")
        made = VerifierEval(str(trained), HARDWARE, SUMS, best_of_n=str(tmp_path / "sampled"))
        samples = tmp_path / "sampled" / "samples.jsonl"
        samples.write_bytes(b"".join((sampled / "samples.jsonl").read_bytes().splitlines(keepends=True)[:-3]))
        with pytest.raises(ValueError, match=r"3 of 144 answers are missing, the first of them to problem 23"):
            run(made, tmp_path / "few")
        (tmp_path / "sampled" / "predictions.jsonl").write_text('{"index": 1}\n')
        with pytest.raises(ValueError, match=r"its record is damaged \(there is no 'question'\)"):
            run(made, tmp_path / "torn")


class TestRefusals:
    @pytest.mark.parametrize(
        ("fault", "why"),
        [
            ("missing", "there is no such folder"),
            ("empty", "it is no run"),
            ("unfinished", "it is interrupted"),
            ("failed", "it is failed"),
            ("torn", "it lacks"),
            ("other", r"it is a run of modern_llm\.tasks\."),
        ],
    )
    @pytest.mark.parametrize("key", ["verifier", "best_of_n"])
    def test_a_folder_that_holds_no_such_run(
        self, key: str, fault: str, why: str, trained: Path, sampled: Path, tmp_path: Path
    ) -> None:
        right, other = (trained, sampled) if key == "verifier" else (sampled, trained)
        path = other if fault == "other" else tmp_path / "run"
        if fault == "empty":
            path.mkdir()
        elif fault not in ("missing", "other"):
            shutil.copytree(right, path)
        if fault in ("unfinished", "failed"):
            (path / "result.json").unlink()
        if fault == "failed":
            (path / "failure.txt").write_text("OutOfMemoryError: no room\n")
        if fault == "torn":
            (path / ("verifier.json" if key == "verifier" else "samples.jsonl")).unlink()
        made = VerifierEval(str(trained), HARDWARE, SUMS)
        with pytest.raises(ValueError, match=rf"task\.{key}='.*': holds no finished run of task={key}, because {why}"):
            replace(made, **{key: str(path)})

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_evaluation_problems": 0}, r"task\.max_evaluation_problems=0: must be at least 1"),
            ({"seed": -1}, r"seed=-1: must not be negative"),
            ({"objective_metric": "verifier_em"}, r"task\.objective_metric='verifier_em': is not measured"),
        ],
    )
    def test_impossible_settings(self, trained: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VerifierEval(str(trained), HARDWARE, SUMS, **changes)
