"""Reward models from end to end: training, exact resuming, scoring, and choosing among many answers."""

from __future__ import annotations

import json
import shutil
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
from modern_llm.data.chat import ChatWriter, with_chat
from modern_llm.data.preferences.read import pair_of, read_preferences
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import FileRows
from modern_llm.data.solutions.settings import ProblemData, problem_id
from modern_llm.evaluation.metrics.numbers import flexible_answer
from modern_llm.evaluation.rewards import AnswerRewards, pair_rewards
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.judges import known_problems, load_reward_model
from modern_llm.experiment.loading import load_model
from modern_llm.experiment.problems import Asking
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.tasks.best_of_n import BestOfN
from modern_llm.tasks.reward_model import RewardModel
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=4, num_threads=1)
LORA = LoRA(rank=4, alpha=8, dropout=0.1)
SUMS = PreferenceData(Arithmetic("preferences", largest=5, held_out=6))
# The parts of all kinds of sums are drawn alike, so that these problems are not among those that are learned.
ASKED = ProblemData(Arithmetic("instructions", largest=5, held_out=6), "instruction", "output")


def task(hub: Path | None, model: Any, steps: int = 4, **changes: Any) -> RewardModel:
    trainer = TrainerSettings(max_steps=steps, batch_size=8, optimizer=AdamW(lr=3e-3, weight_decay=0.0), log_every=1,
                              eval_every=2, keep_checkpoints=9)  # fmt: skip
    given: dict[str, Any] = {"paths": Paths(mirror=str(hub) if hub else None), "data": SUMS, "max_tokens": 150}
    given |= {"max_train_examples": None, "max_evaluation_examples": None, "suggested_steps": 9}
    given |= {"objective_metric": "evaluation_preference_accuracy", "hardware": HARDWARE} | changes
    return RewardModel(model=model, trainer=trainer, **given)


def run(made: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> ModelFromRun:
    """A decoder with random weights."""
    folder = trained_from_scratch(tmp_path_factory.mktemp("reward") / "base", byte_tokenizer())
    return ModelFromRun(str(folder), FullFinetuning())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base: ModelFromRun) -> Path:
    """The run of a reward model."""
    folder = tmp_path_factory.mktemp("reward") / "run"
    run(task(None, base, 8), folder)
    return folder


class TestTraining:
    @pytest.mark.parametrize(
        "model",
        [None, PretrainedModel("made/llama", LORA), PretrainedModel("openai-community/gpt2", FullFinetuning())],
        ids=["own", "llama lora", "gpt2"],
    )
    def test_it_is_resumed_exactly(self, hub: Path, tmp_path: Path, base: ModelFromRun, model: Any) -> None:
        made = task(hub, model or base, 6, margin=0.1, centering=0.01)
        metrics = run(made, tmp_path / "whole")
        shutil.copytree(tmp_path / "whole", tmp_path / "broken")
        for step in (4, 6):
            shutil.rmtree(tmp_path / "broken" / "checkpoints" / f"step_{step:08d}")
        again = run(made, tmp_path / "broken")
        one, two = (
            load_file(tmp_path / f / "checkpoints/step_00000006/model.safetensors") for f in ("whole", "broken")
        )
        assert all(torch.equal(one[key], two[key]) for key in one)
        same = [name for name in metrics if name.startswith("evaluation_")]
        assert {name: again[name] for name in same} == {name: metrics[name] for name in same}
        low, middle, high = (metrics[f"evaluation_preference_accuracy{end}"] for end in ("_low", "", "_high"))
        assert low <= middle <= high

    def test_it_learns_what_can_be_learned(self, tmp_path: Path, base: ModelFromRun) -> None:
        """Answers that say themselves which is the better one."""
        rows = [{"prompt": f"P {p}?", "chosen": f"sure {p % 7}", "rejected": f"odd {p % 5}"} for p in range(60)]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = PreferenceData(FileRows(str(path), None, 10), "texts")
        metrics = run(task(None, base, 40, data=data), tmp_path / "run")
        assert metrics["evaluation_preference_accuracy"] > 0.9
        assert metrics["evaluation_reward_margin"] > 1
        judge = load_reward_model(str(tmp_path / "run"), Runtime(HARDWARE))
        good, bad = judge.score(["New one?", "New one?"], ["sure 3", "odd 3"], 2)
        assert good > bad

    def test_centering_draws_the_rewards_to_0(self, tmp_path: Path, base: ModelFromRun) -> None:
        means = []
        for centering in (0.0, 1.0):
            metrics = run(task(None, base, 12, centering=centering), tmp_path / str(centering))
            means.append(abs(metrics["evaluation_chosen_reward"] + metrics["evaluation_rejected_reward"]))
        assert means[1] < means[0] / 2

    def test_micro_batches_change_nothing(self, tmp_path: Path, base: ModelFromRun) -> None:
        found = []
        for size in (None, 3):
            made = task(None, base, 3, hardware=replace(HARDWARE, micro_batch_size=size))
            run(made, tmp_path / str(size))
            lines = (tmp_path / str(size) / "metrics.jsonl").read_text().splitlines()
            found.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
        assert found[0] == pytest.approx(found[1], abs=1e-5)

    def test_it_is_trained_further(self, tmp_path: Path, trained: Path) -> None:
        run(task(None, ModelFromRun(str(trained), LORA), 2), tmp_path / "run")
        assert load_reward_model(str(tmp_path / "run"), Runtime(HARDWARE)).score(["a"], ["b"], 1).shape == (1,)


class TestScoring:
    def test_a_loaded_one_gives_the_rewards_of_its_run(self, trained: Path) -> None:
        judge = load_reward_model(str(trained), Runtime(HARDWARE))
        rows = SUMS.source.rows("evaluation", None).rows
        scores = [judge.score([r["prompt"] for r in rows], [r[k] for r in rows], 4) for k in ("chosen", "rejected")]
        found = json.loads((trained / "result.json").read_text())["metrics"]
        assert np.mean(scores[0] - scores[1]) == pytest.approx(found["evaluation_reward_margin"], abs=1e-5)
        assert np.mean(scores[0]) == pytest.approx(found["evaluation_chosen_reward"], abs=1e-5)
        assert np.mean(scores[0] > scores[1]) == found["evaluation_preference_accuracy"]

    def test_pairs_in_one_row_are_separate_texts_in_transformers(self, hub: Path) -> None:
        choice = PretrainedModel("made/llama")
        loaded = load_model(choice, Runtime(HARDWARE), str(hub), ["reward"], train=False)
        loaded.model.eval()
        pairs = read_preferences(SUMS, ChatWriter(with_chat(loaded.tokenizer)), "evaluation", 150, None).pairs
        together = pair_rewards(loaded.classifier, pairs, 4, torch.device("cpu"))  # type: ignore[arg-type]
        for pair, both in zip(pairs, together, strict=True):
            for answer, reward in zip(pair.answers, both, strict=True):
                ids = torch.tensor([[*pair.prompt_ids, *answer]])
                with torch.no_grad():
                    theirs = loaded.base(input_ids=ids).logits.item()
                assert reward == pytest.approx(theirs, abs=1e-5)

    def test_weights_are_the_odds_of_being_preferred(self, trained: Path) -> None:
        judge = load_reward_model(str(trained), Runtime(HARDWARE))
        weights = judge.weights(np.array([[0.0, np.log(3.0), -np.inf], [-np.inf] * 3, [900.0, 900.0, -900.0]]))
        assert weights == pytest.approx(np.array([[0.25, 0.75, 0], [0, 0, 0], [0.5, 0.5, 0]]))

    def test_empty_and_long_answers(self, trained: Path) -> None:
        judge = load_reward_model(str(trained), Runtime(HARDWARE))
        assert judge.score(["Q", "Q"], ["", " \n"], 4).tolist() == [-np.inf, -np.inf]
        one, other = judge.score(["long " * 99] * 2, ["#### 1", "#### 2"], 4)
        assert one != other
        assert judge.truncated == 2


class TestBestOfN:
    ASKING = Asking(Sampling(temperature=1.0), max_new_tokens=8)

    def test_the_answer_with_the_largest_reward_is_chosen(
        self, tmp_path: Path, base: ModelFromRun, trained: Path
    ) -> None:
        path = tmp_path / "problems.jsonl"
        path.write_text("".join(json.dumps({"question": f"Say {p}.", "answer": 3}) + "\n" for p in range(9)))
        asked = ProblemData(FileRows(str(path), None, 4))
        run(BestOfN(base, HARDWARE, asked, samples=12, asking=self.ASKING, verifier=str(trained)), tmp_path / "run")
        rows = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
        samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
        judge: AnswerRewards = load_reward_model(str(trained), Runtime(HARDWARE))
        chosen = 0
        for row in rows:
            texts = [s["text"] for s in samples if s["question"] == row["question"] and s["sample"] >= 0]
            assert len(texts) == 12
            rewards = judge.score([row["question"]] * 12, texts, 4)
            numbered = [i for i in range(12) if flexible_answer(texts[i]) is not None]
            assert row["probabilities"] == pytest.approx(np.exp(rewards) / np.exp(rewards).sum(), abs=1e-4)
            if numbered:
                best = max(numbered, key=lambda i: rewards[i])
                assert row["verifier_answer"] == flexible_answer(texts[best])
                chosen += 1
        assert chosen

    def test_problems_that_it_knows_are_left_out(self, tmp_path: Path, base: ModelFromRun, trained: Path) -> None:
        rows = [row for part in ("train", "selection") for row in SUMS.source.rows(part, None).rows]  # type: ignore[arg-type]
        assert known_problems(str(trained)) == {problem_id(pair_of(SUMS, row, 0)[0][0]["content"]) for row in rows}  # type: ignore[index]
        run(BestOfN(base, HARDWARE, ASKED, samples=1, asking=self.ASKING, verifier=str(trained)), tmp_path / "run")
        found = json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]
        assert (found["problems"], found["left_out_because_the_verifier_knows_them"]) == (6, 0)
        path = tmp_path / "known.jsonl"
        path.write_text("".join(json.dumps({"question": row["prompt"], "answer": 3}) + "\n" for row in rows))
        known = ProblemData(FileRows(str(path), str(path), 1))
        with pytest.raises(ValueError, match="it was trained on all of the 30 problems"):
            run(BestOfN(base, HARDWARE, known, samples=1, asking=self.ASKING, verifier=str(trained)), tmp_path / "none")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"margin": -1.0}, r"task\.margin=-1\.0: must not be negative"),
            ({"centering": -0.1}, r"task\.centering=-0\.1"),
            ({"objective_metric": "rouge"}, r"task\.objective_metric='rouge': is not measured"),
        ],
    )
    def test_impossible_settings(self, base: ModelFromRun, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            task(None, base, **changes)

    def test_another_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds no finished reward model"):
            load_reward_model(str(tmp_path), Runtime(HARDWARE))

    def test_it_writes_no_text(self, trained: Path) -> None:
        with pytest.raises(ValueError, match=r"is a classifier \(reward\) and writes no text"):
            load_model(ModelFromRun(str(trained)), Runtime(HARDWARE), None, [], train=False)
