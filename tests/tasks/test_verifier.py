"""Verifiers from end to end: training, exact resuming, what is chosen where, and choosing among many answers."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bases import trained_from_scratch
from made_models import byte_tokenizer
from safetensors.torch import load_file

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.rows import FileRows, HubRows
from modern_llm.data.solutions.settings import ProblemData, SolutionData
from modern_llm.data.text.tokenizers import ByteTokenizer
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.judges import load_verifier
from modern_llm.experiment.problems import Asking, SampledSolutions
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.tasks.best_of_n import BestOfN
from modern_llm.tasks.verifier import Verifier
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=16, num_threads=1)
ENCODER = VerifierConfig(max_seq_len=96, d_model=32, n_layers=2, n_heads=4, dropout=0.1)
SUMS = SolutionData(Arithmetic("solutions", largest=5, held_out=6))
ASKED = ProblemData(Arithmetic("instructions", largest=5, held_out=6), "instruction", "output")
LORA = LoRA(rank=4, alpha=8, dropout=0.1)
WARM = Asking(Sampling(temperature=1.0), max_new_tokens=8)


def task(hub: Path | None, model: Any, steps: int = 4, **changes: Any) -> Verifier:
    trainer = TrainerSettings(max_steps=steps, batch_size=8, optimizer=AdamW(lr=3e-3, weight_decay=0.0), log_every=1,
                              eval_every=2, keep_checkpoints=9)  # fmt: skip
    given: dict[str, Any] = {"paths": Paths(mirror=str(hub) if hub else None), "tokenizer": ByteTokenizer()} | changes
    return Verifier(model=model, trainer=trainer, hardware=HARDWARE, **{"data": SUMS, **given})


def run(made: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of an encoder."""
    folder = tmp_path_factory.mktemp("verifier") / "run"
    run(task(None, ENCODER, 8), folder)
    return folder


@pytest.fixture(scope="module")
def solver(tmp_path_factory: pytest.TempPathFactory) -> ModelFromRun:
    base = trained_from_scratch(tmp_path_factory.mktemp("solver") / "base", byte_tokenizer())
    return ModelFromRun(str(base), FullFinetuning())


class TestTraining:
    @pytest.mark.parametrize(
        "model",
        [ENCODER, PretrainedModel("made/llama", LORA), PretrainedModel("openai-community/gpt2", FullFinetuning())],
        ids=["encoder", "llama lora", "gpt2"],
    )
    def test_it_is_resumed_exactly(self, hub: Path, tmp_path: Path, model: Any) -> None:
        made = task(hub, model, 6)
        metrics = run(made, tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        for step in (4, 6):
            shutil.rmtree(tmp_path / "broken" / "checkpoints" / f"step_{step:08d}")
        again = run(made, tmp_path / "broken")
        assert all(
            torch.equal(w, weights(tmp_path / "broken", 6)[n]) for n, w in weights(tmp_path / "whole", 6).items()
        )
        for name in ("roc_auc", "accuracy", "brier", "ece", "threshold", "train_loss"):
            assert again[name] == metrics[name], name

    def test_it_learns_what_can_be_learned(self, tmp_path: Path) -> None:
        """Answers that say themselves whether they are right."""
        rows = [
            {"question": f"Problem {p}?", "answer": f"it is {'sure' if right else 'odd'} {p % 7}", "correct": right}
            for p in range(60)
            for right in (True, False)
        ]
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        metrics = run(task(None, ENCODER, 60, data=SolutionData(FileRows(str(path), None, 10))), tmp_path / "run")
        assert metrics["roc_auc"] > 0.95
        assert metrics["accuracy"] > 0.9
        assert metrics["picked_accuracy"] > 0.9

    def test_what_is_written(self, trained: Path) -> None:
        found = result(trained)
        assert found["headline"][:2] == ["roc_auc", "accuracy"]
        assert set(found["protocol"]["parts"]) == {"train", "selection", "evaluation"}
        assert {f"{name}_{end}" for name in ("roc_auc", "brier") for end in ("low", "high")} <= found["metrics"].keys()
        predictions = [json.loads(line) for line in (trained / "predictions.jsonl").read_text().splitlines()]
        errors = [json.loads(line) for line in (trained / "errors.jsonl").read_text().splitlines()]
        assert len(predictions) == 12
        assert all(e["accepted"] != e["correct"] for e in errors)
        assert np.mean([p["accepted"] == p["correct"] for p in predictions]) == found["metrics"]["accuracy"]
        assert "Calibration" in (trained / "report.html").read_text()

    def test_calibration_and_threshold_do_not_see_what_is_reported_on(self, tmp_path: Path) -> None:
        """The evaluation's marks turned around: the same decisions, other figures."""
        train = [
            {"question": f"P {p}", "answer": f"{p} {j}", "correct": (p + j) % 3 == 0}
            for p in range(30)
            for j in range(2)
        ]
        other = [{"question": f"E {p}", "answer": f"{p}", "correct": p % 2 == 0} for p in range(12)]
        facts = []
        for name, turned in (("as", False), ("not", True)):
            paths = [tmp_path / f"{name}_{part}.jsonl" for part in ("train", "evaluation")]
            held_back = [{**row, "correct": row["correct"] != turned} for row in other]
            for path, rows in zip(paths, (train, held_back), strict=True):
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data = SolutionData(FileRows(str(paths[0]), str(paths[1]), 8))
            metrics = run(task(None, ENCODER, 2, data=data), tmp_path / name)
            written = json.loads((tmp_path / name / "verifier.json").read_text())
            facts.append((written["threshold"], written["calibration"], written["checkpoint"]))
            facts[-1] += (metrics["accuracy"],)
        assert facts[0][:3] == facts[1][:3]
        assert facts[0][3] == pytest.approx(1 - facts[1][3])

    def test_a_decoder_of_our_own_gets_a_head(self, tmp_path: Path, solver: ModelFromRun) -> None:
        metrics = run(task(None, solver, 2), tmp_path)
        assert 0 <= metrics["roc_auc"] <= 1

    def test_a_verifier_is_trained_further(self, trained: Path, tmp_path: Path) -> None:
        for lora in (FullFinetuning(), LORA):
            run(task(None, ModelFromRun(str(trained), lora), 2), tmp_path / type(lora).__name__)
            assert load_verifier(str(tmp_path / type(lora).__name__), Runtime(HARDWARE)).score(
                ["a"], ["b"], 1
            ).shape == (1,)

    def test_a_tokenizer_is_trained_on_what_is_learned(self, tmp_path: Path) -> None:
        from modern_llm.data.text.tokenizers import BPETokenizer, Tokenizer

        made = task(None, ENCODER, 2, tokenizer=BPETokenizer(300), paths=Paths(cache=str(tmp_path / "cache")))
        run(made, tmp_path / "run")
        tokenizer = Tokenizer.load(tmp_path / "run/checkpoints/step_00000002/tokenizer")
        assert len(tokenizer.encode("Question: What is 3")) < 12


class TestScoring:
    @pytest.mark.parametrize("model", [ENCODER, PretrainedModel("made/llama", LORA)], ids=["encoder", "llama lora"])
    def test_a_loaded_verifier_gives_the_probabilities_of_its_run(self, hub: Path, tmp_path: Path, model: Any) -> None:
        run(task(hub, model), tmp_path / "run")
        verifier = load_verifier(str(tmp_path / "run"), Runtime(HARDWARE), str(hub))
        rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
        scores = verifier.score([r["question"] for r in rows], [r["answer"] for r in rows], batch_size=5)
        assert scores == pytest.approx([r["probability"] for r in rows], abs=1e-5)
        assert [bool(s >= verifier.threshold) for s in scores] == [r["accepted"] for r in rows]

    def test_an_empty_answer_is_wrong_and_a_long_one_is_read_to_its_end(self, trained: Path) -> None:
        verifier = load_verifier(str(trained), Runtime(HARDWARE))
        assert verifier.score(["Q", "Q"], ["", " \n"], 4).tolist() == [0, 0]
        one, other = verifier.score(["long " * 99] * 2, ["#### 1", "#### 2"], 4)
        assert one != other

    def test_other_folders_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"task\.verifier='.*': holds no finished verifier"):
            load_verifier(str(tmp_path), Runtime(HARDWARE))


class TestBestOfN:
    def test_every_way_is_measured_and_the_table_is_the_same_after_an_interruption(
        self, tmp_path: Path, solver: ModelFromRun, trained: Path
    ) -> None:
        made = BestOfN(solver, HARDWARE, ASKED, samples=4, asking=WARM, verifier=str(trained))
        metrics = run(made, tmp_path / "whole")
        found = result(tmp_path / "whole")
        assert found["headline"] == ["greedy_em", "majority_em", "verifier_em", "weighted_em", "sample_em", "pass_at_4"]
        assert {row["way"] for row in found["tables"]["Problems solved with k answers"]} == {
            "majority", "verifier", "weighted", "pass",
        }  # fmt: skip
        assert (tmp_path / "whole" / "solved.png").stat().st_size > 1000
        lines = (tmp_path / "whole" / "samples.jsonl").read_bytes().splitlines(keepends=True)
        assert len(lines) == 6 * 5
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "samples.jsonl").write_bytes(b"".join(lines[:13]) + lines[13][:7])
        again = run(made, tmp_path / "broken")
        changing = ("sampling_seconds", "peak_memory_gb")
        assert {k: v for k, v in again.items() if k not in changing} == {
            k: v for k, v in metrics.items() if k not in changing
        }
        assert (tmp_path / "broken" / "samples.jsonl").read_bytes() == b"".join(lines)
        predictions = (tmp_path / "whole" / "predictions.jsonl").read_text()
        assert (tmp_path / "broken" / "predictions.jsonl").read_text() == predictions

    def test_problems_that_the_verifier_knows_are_left_out(
        self, tmp_path: Path, solver: ModelFromRun, trained: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "a.jsonl"
        sums = [(a, b) for a in range(6) for b in range(6)]
        path.write_text(
            "".join(json.dumps({"question": f"What is {a} + {b}?", "answer": a + b}) + "\n" for a, b in sums)
        )
        every = ProblemData(FileRows(str(path), str(path), 1))
        run(BestOfN(solver, HARDWARE, every, samples=1, asking=WARM, verifier=str(trained)), tmp_path / "run")
        found = result(tmp_path / "run")["protocol"]
        assert (found["problems"], found["left_out_because_the_verifier_knows_them"]) == (6, 30)
        assert "30 of 36 problems are left out" in capsys.readouterr().err
        known = ProblemData(FileRows(str(path), str(path), 1))
        held_out = {p["question"] for p in map(json.loads, (trained / "predictions.jsonl").read_text().splitlines())}
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["question"] not in held_out]
        path.write_text("\n".join(lines) + "\n")
        with pytest.raises(ValueError, match="it was trained on all of the 30 problems"):
            run(BestOfN(solver, HARDWARE, known, samples=1, asking=WARM, verifier=str(trained)), tmp_path / "none")

    def test_a_chat_model_is_asked_through_its_template(self, hub: Path, tmp_path: Path) -> None:
        data = ProblemData(HubRows("openai/gsm8k", "main", "test", held_out=5))
        chat = replace(WARM, chat=True)
        model = PretrainedModel("made/llama", LORA)
        made = BestOfN(model, HARDWARE, data, Paths(mirror=str(hub)), samples=2, asking=chat, max_problems=3)
        assert run(made, tmp_path / "chat")["problems"] == 3
        run(replace(made, asking=WARM), tmp_path / "plain")
        texts = [(tmp_path / name / "predictions.jsonl").read_text() for name in ("chat", "plain")]
        assert texts[0] != texts[1]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"samples": 0}, r"task\.samples=0: must lie between 1 and 1000"),
            ({"asking": Asking(Sampling(temperature=0.0))}, r"temperature=0\.0: makes all of task\.samples=8"),
            ({"max_problems": 0}, r"task\.max_problems=0"),
            ({"verifier": "/nowhere"}, r"task\.verifier='/nowhere': holds no finished verifier"),
            ({"objective_metric": "verifier_em"}, r"task\.objective_metric='verifier_em': is not measured"),
        ],
    )
    def test_impossible_settings(self, changes: dict[str, Any], message: str) -> None:
        given = {"model": PretrainedModel("x"), "hardware": HARDWARE, "data": ASKED} | changes
        with pytest.raises(ValueError, match=message):
            BestOfN(**given)

    def test_no_room_for_an_answer(self, tmp_path: Path, solver: ModelFromRun) -> None:
        asking = replace(WARM, max_new_tokens=150)
        with pytest.raises(ValueError, match=r"max_new_tokens=150: no problem fits into the model's context of 160"):
            run(BestOfN(solver, HARDWARE, ASKED, samples=1, asking=asking), tmp_path)

    def test_an_encoder_decoder(self, hub: Path, tmp_path: Path) -> None:
        model = PretrainedModel("google-t5/t5-small")
        with pytest.raises(ValueError, match="shares no prompt"):
            run(BestOfN(model, HARDWARE, ASKED, Paths(mirror=str(hub)), samples=1, asking=WARM), tmp_path)


class TestSampledAnswers:
    def sampled(self, solver: ModelFromRun, **changes: Any) -> SampledSolutions:
        """Answers of a model that has learned nothing, to problems whose answer it hits now and then."""
        path = Path(solver.path) / "problems.jsonl"
        path.write_text("".join(json.dumps({"question": f"Say {p}.", "answer": 3}) + "\n" for p in range(81)))
        return SampledSolutions(
            solver, ProblemData(FileRows(str(path), None, 1)), 8, WARM, **({"held_out": 25} | changes)
        )

    def test_they_are_marked_kept_and_learned(self, tmp_path: Path, solver: ModelFromRun) -> None:
        folder = tmp_path / "run"
        metrics = run(task(None, ENCODER, 2, data=self.sampled(solver)), folder)
        rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
        assert len(rows) == 79 * 8
        assert all(row["correct"] == (row["answer"] is not None and float(row["answer"]) == 3) for row in rows)
        kept = SolutionData(FileRows(str(folder / "samples.jsonl"), None, 25), answer_column="text")
        assert run(task(None, ENCODER, 2, data=kept), tmp_path / "again")["roc_auc"] == metrics["roc_auc"]

    def test_a_run_that_is_killed_goes_on_with_what_it_has(self, tmp_path: Path, solver: ModelFromRun) -> None:
        """SIGKILL in the middle of the sampling: the same answers as from a run that was never stopped."""
        code = (
            "import sys; sys.path[:0] = sys.argv[3:]\n"
            "from pathlib import Path\n"
            "from test_verifier import TestSampledAnswers, HARDWARE\n"
            "from modern_llm.pretrained.settings import ModelFromRun, FullFinetuning\n"
            "from modern_llm.experiment.contract import RunFolder\n"
            "from modern_llm.training.runtime import Runtime\n"
            "data = TestSampledAnswers().sampled(ModelFromRun(sys.argv[1], FullFinetuning()), max_problems=51)\n"
            "data.drawn(RunFolder(Path(sys.argv[2]), {}), Runtime(HARDWARE), 4, None, 0)\n"
        )
        here = Path(__file__).parent
        (tmp_path / "killed").mkdir()
        (tmp_path / "whole").mkdir()
        paths = [str(here), str(here.parent), str(here.parents[1])]
        process = subprocess.Popen([sys.executable, "-c", code, solver.path, str(tmp_path / "killed"), *paths])
        file = tmp_path / "killed" / "samples.jsonl"
        for _ in range(3000):
            if file.is_file() and file.read_bytes().count(b"\n") >= 40:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        written = file.read_bytes()
        assert written.count(b"\n") < 51 * 8
        data = self.sampled(solver, max_problems=51)
        for name in ("killed", "whole"):
            data.drawn(RunFolder(tmp_path / name, {}), Runtime(HARDWARE), 4, None, 0)
        assert file.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
        assert set(written[: written.rindex(b"\n")].splitlines()) < set(file.read_bytes().splitlines())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"held_out": 0}, r"task\.data\.held_out=0"),
            ({"max_problems": 50}, r"must exceed twice task\.data\.held_out=25"),
        ],
    )
    def test_impossible_settings(self, solver: ModelFromRun, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.sampled(solver, **changes)


class TestRefusals:
    def test_an_encoder_decoder(self, hub: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="an encoder-decoder"):
            run(task(hub, PretrainedModel("google-t5/t5-small")), tmp_path)

    def test_a_verifier_writes_no_text(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"is a classifier \(wrong, right\) and writes no text"):
            run(BestOfN(ModelFromRun(str(trained)), HARDWARE, ASKED, samples=1, asking=WARM), tmp_path)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"max_tokens": 3}, r"task\.max_tokens=3"),
            ({"max_train_problems": 0}, r"task\.max_train_problems=0"),
            ({"objective_metric": "rouge"}, r"task\.objective_metric='rouge': is not measured"),
        ],
    )
    def test_impossible_settings(self, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            task(None, ENCODER, **changes)
