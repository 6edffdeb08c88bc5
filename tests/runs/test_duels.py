"""Duels of answers: what counts as a win, who may judge, and on which prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bases import trained_from_scratch
from made_models import byte_tokenizer

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.chat import ChatWriter
from modern_llm.data.preferences.read import prompt_ids
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import PARTS, FileRows
from modern_llm.data.solutions.settings import problem_id
from modern_llm.evaluation.rewards import AnswerRewards
from modern_llm.experiment.judges import REWARD_FILE, REWARD_LABELS
from modern_llm.experiment.loading import load_chat_model
from modern_llm.experiment.samples import Samples
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun, PretrainedModel
from modern_llm.reinforcement.rewards import JudgeReward, LengthReward, WeightedSum
from modern_llm.runs.pipeline.duels import dependence, judged_wins, unknown_prompts
from modern_llm.runs.pipeline.settings import Measures
from modern_llm.tasks.dpo import DPO
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

SUMS = PreferenceData(Arithmetic("preferences", largest=5, held_out=6))


class Longest:
    """A judge for which the longer answer is the better one, but for what it reads of another one beside it."""

    truncated = 0

    def score_conversations(self, asked: Any, answers: Sequence[str], rows: int, progress: Any) -> np.ndarray:
        assert [turns[-1]["content"] for turns in asked] == ["one?", "two?", "three?", "four?"] * (len(answers) // 4)
        rounding = np.arange(len(answers)) * 1e-9
        return np.array([len(a) if a else -np.inf for a in answers]) + rounding


def answers(*texts: str) -> dict[str, Any]:
    asked = ["one?", "two?", "three?", "four?"]
    return {"conversations": [[{"role": "user", "content": text}] for text in asked], "texts": list(texts)}


def test_wins_are_counted_against_the_policy_before_and_the_first_that_was_taught() -> None:
    answered = {
        "base": answers("aaaa", "", "b", ""),
        "sft": answers("aaa", "x", "b", ""),
        "rl": answers("aaaaa", "x", "", "y"),
        "rl_sft": answers("aaaa", "x", "bb", ""),
    }
    before = {"sft": "base", "rl": "sft", "rl_sft": "sft"}
    found = judged_wins(answered, before, Longest(), 2, 0)  # type: ignore[arg-type]
    # Lost, won, the same, the same; won, the same, lost to an empty one, won; won, the same, won, the same.
    expected = {"sft": (0 + 1 + 0.5 + 0.5) / 4, "rl": (1 + 0.5 + 0 + 1) / 4, "rl_sft": (1 + 0.5 + 1 + 0.5) / 4}
    assert {name: rates["judged_win_rate"] for name, rates in found.items() if rates} == expected
    for name in ("rl", "rl_sft"):
        assert found[name]["judged_win_rate_over_sft"] == expected[name]
    assert found["sft"].keys() == {f"judged_win_rate{end}" for end in ("", "_low", "_high")}
    assert all(
        r["judged_win_rate_low"] <= r["judged_win_rate"] <= r["judged_win_rate_high"] for r in found.values() if r
    )
    without_sft = {name: answered[name] for name in ("base", "rl")}
    over_base = judged_wins(without_sft, {"rl": "base"}, Longest(), 2, 0)["rl"]  # type: ignore[arg-type]
    assert over_base["judged_win_rate_over_base"] == (1 + 1 + 0 + 1) / 4 == over_base["judged_win_rate"]


def dpo(data: PreferenceData) -> DPO:
    """Whose pairs are of interest alone."""
    samples = Samples([], 1, Sampling())
    return DPO(model=PretrainedModel("x", FullFinetuning()), trainer=TrainerSettings(), hardware=Hardware(), data=data,
               samples=samples, max_tokens=99, max_train_examples=None, max_evaluation_examples=None,
               suggested_steps=1, objective_metric="evaluation_preference_accuracy")  # fmt: skip


@pytest.fixture
def judge(tmp_path: Path) -> str:
    """The folder of what says that it is a reward model."""
    folder = tmp_path / "judge"
    folder.mkdir()
    (folder / REWARD_FILE).write_text(json.dumps({"known_problems": []}))
    return str(folder)


class TestIndependence:
    def test_prompts_that_both_learn_from_are_told(self, judge: str) -> None:
        halves = [replace(SUMS, folds=2, fold=fold) for fold in (0, 1)]
        known = [prompt_ids(data, PARTS[:2], None, {}, 0) for data in halves]
        assert dependence(judge, known[1], dpo(halves[0]), None) == []
        (told,) = dependence(judge, known[1], dpo(SUMS), None)
        own = len(known[1]) - 6  # without the held-out ones
        assert told.startswith(f"{own} of the 24 prompts that DPO learns from are known to the judge")
        assert "task.data.folds" in told
        assert dependence(judge, known[1], None, None) == []

    def test_a_reward_that_asks_the_judge_is_told(self, judge: str, tmp_path: Path) -> None:
        (other := tmp_path / "other").mkdir()
        (other / REWARD_FILE).write_text("{}")
        for reward in (JudgeReward(judge), WeightedSum({"a": LengthReward(1, 2), "b": JudgeReward(f"{judge}/")})):
            (told,) = dependence(judge, frozenset(), None, reward)
            assert told.startswith("RL is rewarded by the judge itself")
        assert dependence(judge, frozenset(), None, JudgeReward(str(other))) == []

    def test_prompts_that_the_judge_knows_are_not_asked(self, tmp_path: Path) -> None:
        rows = [{"prompt": f"Ask {n}?", "chosen": "yes", "rejected": "no" if n else "yes"} for n in range(9)]
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = dpo(PreferenceData(FileRows(str(path), str(path), 1), system="Be short."))
        known = frozenset([problem_id("ask  3?"), problem_id("Ask 7?"), problem_id("Ask 77?")])
        asked = unknown_prompts(task, None, known, None, 0)
        assert {index: turns[-1]["content"] for index, turns in asked.items()} == {
            n: f"Ask {n}?"
            for n in (1, 2, 4, 5, 6, 8)  # both answers to the first one are the same
        }
        assert all(turns[0] == {"role": "system", "content": "Be short."} for turns in asked.values())


def test_a_judge_that_is_none_is_refused(tmp_path: Path, judge: str) -> None:
    assert Measures(judge=judge).judge == judge
    with pytest.raises(ValueError, match=r"task\.measures\.judge=.*holds no finished verifier or reward model.*null"):
        Measures(judge=str(tmp_path))


def test_a_reward_model_reads_the_whole_conversation(tmp_path: Path) -> None:
    runtime = Runtime(Hardware(device="cpu", precision="fp32", num_threads=1))
    folder = trained_from_scratch(tmp_path / "run", byte_tokenizer())
    choice = ModelFromRun(str(folder), FullFinetuning())
    loaded = load_chat_model(choice, runtime, None, train=False, labels=REWARD_LABELS)
    loaded.model.eval()
    made = AnswerRewards(loaded.classifier, ChatWriter(loaded.tokenizer), runtime, 120, "Be short.")
    turns = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "1"}]
    conversations = [[*turns, {"role": "user", "content": "two?"}], turns[:1]]
    both = made.score_conversations(conversations, ["2", "2"], 2)
    assert both[1] == pytest.approx(made.score(["one?"], ["2"], 1)[0], abs=1e-5)
    assert abs(both[0] - made.score(["two?"], ["2"], 1)[0]) > 1e-4
