"""What answers are worth, against closed forms and against the judges' own figures."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import trained_from_scratch
from commands import ROOT, with_path
from hydra import compose, initialize_config_dir
from made_models import byte_tokenizer

from modern_llm.config.choices import choices_of
from modern_llm.config.instantiate import ConfigError, build
from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.preferences.settings import PreferenceData
from modern_llm.data.rows import PARTS
from modern_llm.data.solutions.problems import Problem
from modern_llm.data.solutions.settings import SolutionData, problem_id
from modern_llm.data.text.tokenizers import ByteTokenizer
from modern_llm.evaluation.metrics.numbers import strict_answer
from modern_llm.experiment.contract import RunFolder
from modern_llm.experiment.judges import load_reward_model
from modern_llm.models.decoding.generation import Continuation
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun
from modern_llm.reinforcement.rewards import (
    FormatReward,
    JudgeReward,
    LengthReward,
    Marker,
    MarkError,
    NumberReward,
    Reward,
    RuleReward,
    WeightedSum,
    checked_marks,
)
from modern_llm.tasks.reward_model import RewardModel
from modern_llm.tasks.verifier import Verifier
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=4, num_threads=1)
SHORT = TrainerSettings(max_steps=4, batch_size=8, eval_every=4)


def problem(question: str = "What is 3 + 4?", solution: str = "#### 7") -> Problem:
    return Problem(0, question, solution, problem_id(question))


def mark(reward: Reward, text: str, solution: str = "#### 7", ended: bool = True) -> float:
    marker = reward.marker(Runtime(HARDWARE), None, 4)
    (found,) = checked_marks(marker, [problem(solution=solution)], [Continuation(text, ended)])
    return found


class TestRules:
    @pytest.mark.parametrize(
        ("text", "solution", "strict", "flexible"),
        [
            ("3 + 4 = 7\n#### 7", "3 + 4 = 7\n#### 7", 1, 1),
            ("#### 7.0", "7", 1, 1),
            ("It is 7.", "7", 0, 1),
            ("#### 8, or rather 7", "7", 0, 1),
            ("#### 7 and no 8", "7", 1, 0),
            ("#### -7", "#### 7", 0, 0),
            ("#### −1,234", "-1234", 1, 1),
            ("seven", "7", 0, 0),
            ("", "7", 0, 0),
        ],
    )
    def test_the_number(self, text: str, solution: str, strict: int, flexible: int) -> None:
        assert mark(NumberReward("strict"), text, solution) == strict
        assert mark(NumberReward("flexible"), text, solution) == flexible
        assert mark(NumberReward(), text, solution, ended=False) == strict

    def test_sums_are_marked_as_they_are_marked_in_the_data(self) -> None:
        source = Arithmetic("solutions", terms=4, operations="+-*", largest=99, questions=200)
        for part in PARTS:
            for row in source.rows(part, None).rows:
                expected = float(row["correct"])
                question = row["question"].removeprefix("What is ").removesuffix("?")
                assert mark(NumberReward(), row["answer"], str(eval(question))) == expected
                assert mark(FormatReward(), row["answer"]) == 1

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("so\n#### 7", 1),
            ("#### -1,234.5\nmore", 1),
            ("so #### 7", 0),
            ("#### seven", 0),
            ("#### 7 apples", 0),
            ("####7", 0),
            ("7", 0),
        ],
    )
    def test_the_form(self, text: str, found: int) -> None:
        assert mark(FormatReward(), text) == found
        assert not found or strict_answer(text) is not None
        assert mark(FormatReward(r"\bmore$"), text) == text.endswith("more")

    @pytest.mark.parametrize(
        ("length", "worth"), [(0, 0.0), (30, 0.0), (31, -0.1), (35, -0.5), (40, -1.0), (41, -1.0), (999, -1.0)]
    )
    def test_the_length(self, length: int, worth: float) -> None:
        """Eq. 13 with L_max = 40 and L_cache = 10, by hand."""
        assert mark(LengthReward(30, 40), "x" * length) == pytest.approx(worth)
        assert mark(LengthReward(30, 40), "x" * length, ended=False) == -1

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (lambda: FormatReward("("), r"task\.reward\.pattern='\(': no regular expression"),
            (lambda: FormatReward(""), r"task\.reward\.pattern='': is found in every text"),
            (lambda: LengthReward(-1, 5), r"task\.reward\.free=-1"),
            (lambda: LengthReward(5, 5), r"task\.reward\.most=5: must exceed task\.reward\.free=5"),
            (lambda: JudgeReward("/nowhere"), r"task\.reward\.path='/nowhere': holds no finished verifier or reward"),
            (lambda: WeightedSum({}), r"task\.reward\.rewards=\{\}: names none"),
            (
                lambda: WeightedSum({"right": NumberReward()}, {"form": 1.0}),
                r"task\.reward\.weights\.form=1\.0: is for no reward\. Known: right",
            ),
            (lambda: WeightedSum({"a": NumberReward()}, {"a": math.nan}), r"task\.reward\.weights\.a=nan"),
        ],
    )
    def test_impossible_settings(self, made: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            made()


def run(task: Any, folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    task.run(RunFolder(folder, {}))
    return folder


class TestJudges:
    def test_a_verifier_gives_the_probabilities_of_its_run(self, tmp_path: Path) -> None:
        data = SolutionData(Arithmetic("solutions", largest=5, held_out=6))
        encoder = VerifierConfig(max_seq_len=96, d_model=32, n_layers=1, n_heads=4)
        task = Verifier(model=encoder, trainer=SHORT, hardware=HARDWARE, data=data, tokenizer=ByteTokenizer())
        folder = run(task, tmp_path / "run")
        rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        marker = JudgeReward(str(folder)).marker(Runtime(HARDWARE), None, 5)
        problems = [problem(row["question"]) for row in rows]
        marks = checked_marks(marker, problems, [Continuation(row["answer"], True) for row in rows])
        assert marks == pytest.approx([row["probability"] for row in rows], abs=1e-5)
        assert len(set(marks)) > 1
        assert checked_marks(marker, problems[:1], [Continuation(" \n", True)]) == [0]

    def test_a_reward_model_gives_the_chance_against_a_reward_of_0(self, tmp_path: Path) -> None:
        base = ModelFromRun(str(trained_from_scratch(tmp_path / "base", byte_tokenizer())), FullFinetuning())
        source = Arithmetic("preferences", largest=5, held_out=6)
        limits: dict[str, Any] = {"max_train_examples": None, "max_evaluation_examples": None}
        more = {"suggested_steps": 4, "objective_metric": "evaluation_loss", "max_tokens": 150, **limits}
        task = RewardModel(model=base, trainer=SHORT, hardware=HARDWARE, data=PreferenceData(source), **more)
        folder = str(run(task, tmp_path / "run"))
        pairs = source.rows("evaluation", None).rows
        marker = JudgeReward(folder).marker(Runtime(HARDWARE), None, 5)
        problems, texts = [problem(row["prompt"]) for row in pairs], [row["chosen"] for row in pairs]
        marks = checked_marks(marker, problems, [Continuation(text, True) for text in texts])
        rewards = load_reward_model(folder, Runtime(HARDWARE)).score([row["prompt"] for row in pairs], texts, 3)
        assert marks == pytest.approx(torch.from_numpy(rewards).sigmoid().tolist(), abs=1e-5)
        assert len(set(marks)) > 1
        assert checked_marks(marker, problems[:1], [Continuation("", True)]) == [0]


def made(*overrides: str) -> Any:
    """The reward of a command."""
    with initialize_config_dir(str(ROOT / "modern_llm" / "conf"), version_base="1.3"):
        config = compose("config", overrides=["name=x", "task=rl", "model=gpt2", *overrides])
    return build(config.task.reward, "task.reward")


class TestConfiguration:
    @pytest.mark.parametrize("choice", choices_of("task/reward"))
    def test_every_choice_builds(self, choice: str, tmp_path: Path) -> None:
        (tmp_path / "verifier.json").write_text("{}")
        more = {"verifier": [f"task.reward.path={tmp_path}"], "sum": ["+task/reward@task.reward.rewards.a=length"]}
        assert isinstance(made(f"task/reward={choice}", *more.get(choice, [])), Reward)

    def test_a_sum_is_made_in_the_command(self) -> None:
        named = ["+task/reward@task.reward.rewards.right=number", "+task/reward@task.reward.rewards.form=format"]
        weighed = ["+task.reward.weights.form=0.2", "task.reward.rewards.right.reading=flexible"]
        reward = made("task/reward=sum", *named, *weighed)
        worth = {"#### 7": 1.2, "It is 7": 1.0, "#### 8": 0.2, "eight": 0.0}
        assert [mark(reward, text) for text in worth] == pytest.approx(list(worth.values()))

    def test_what_is_no_reward_is_refused(self) -> None:
        other = "{_target_: modern_llm.models.attention.rope.NoRope}"
        with pytest.raises(ConfigError, match=r"task\.reward\.rewards=.*must be names, each with a Reward"):
            made("task/reward=sum", f"+task.reward.rewards.a={other}")

    def test_a_class_of_ones_own_is_used_as_its_page_says(self, tmp_path: Path) -> None:
        """The page's files, in a folder of their own; wrong settings are refused before torch is loaded."""
        text = (ROOT / "docs" / "extend" / "reward.md").read_text()
        for title, block in re.findall(r"^```\w+ title=\"([^\"]+)\"\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            (tmp_path / title).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / title).write_text(block)
        (tmp_path / "try.py").write_text(TRIED)
        done = subprocess.run(
            [sys.executable, "try.py", str(ROOT / "modern_llm" / "conf")],
            cwd=tmp_path, capture_output=True, text=True, env=with_path(), timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == pytest.approx([1.0 + 0.2 * 1.0, 1.0 + 0.2 * 0.5, 0.0])


TRIED = """
import json, sys
from hydra import compose, initialize_config_dir
from modern_llm.config.instantiate import ConfigError, build
from modern_llm.config.plugins import use_plugins

use_plugins(["my_lab"])
with initialize_config_dir(sys.argv[1], version_base="1.3"):
    lab = "hydra.searchpath=[file://conf]"
    words = ["task=rl", "model=gpt2", "task/reward=right_in_steps"]
    config = compose("config", overrides=["name=x", lab, *words])
reward = build(config.task).reward
config.task.reward.rewards.steps.most = "many"
try:
    build(config.task)
except ConfigError as told:
    assert "task.reward.rewards.steps.most='many': must be a whole number" in str(told), told
else:
    raise AssertionError
assert "torch" not in sys.modules

from modern_llm.data.solutions.problems import Problem
from modern_llm.models.decoding.generation import Continuation
from modern_llm.reinforcement.rewards import checked_marks
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware

texts = ["3 + 4 = 7\\n7 + 2 = 9\\n#### 9", "3 + 4 = 8\\n7 + 2 = 9\\n#### 9", "12"]
problems = [Problem(0, "What is 3 + 4 + 2?", "#### 9", "x")] * 3
marker = reward.marker(Runtime(Hardware(device="cpu", precision="fp32")), None, 4)
print(json.dumps(checked_marks(marker, problems, [Continuation(text, True) for text in texts])))
"""


@dataclass(frozen=True)
class Given(RuleReward):
    """A mark that an answer says itself."""

    def mark(self, problem: Problem, answer: Continuation) -> float:
        return float(answer.text)


@dataclass(frozen=True)
class Batch(Reward):
    """What a marker of all answers at once gives."""

    marks: Any

    def marker(self, runtime: Runtime, mirror: str | None, rows: int) -> Marker:
        def marks(problems: Sequence[Problem], answers: Sequence[Continuation]) -> list[float]:
            if isinstance(self.marks, Exception):
                raise self.marks
            return self.marks

        return marks


class TestChecks:
    ANSWERS = (Continuation("1", True), Continuation("2.5", False))

    def check(self, reward: Reward, answers: Sequence[Continuation] = ANSWERS) -> list[float]:
        marker = reward.marker(Runtime(HARDWARE), None, 4)
        return checked_marks(marker, [problem(f"Question {i}?") for i in range(len(answers))], answers)

    def test_finite_marks_are_given_as_they_are(self) -> None:
        assert self.check(Given()) == [1, 2.5]
        assert self.check(Batch([True, torch.tensor(0.5)])) == [1, 0.5]
        assert self.check(Given(), []) == []

    @pytest.mark.parametrize("worth", ["nan", "inf", "-inf"])
    def test_marks_that_are_not_finite(self, worth: str) -> None:
        told = rf"Given gives {worth}, which is no finite number, to the answer '{worth}' to the problem 'Question 1\?'"
        with pytest.raises(ValueError, match=told):
            self.check(Given(), [Continuation("1", True), Continuation(worth, True)])

    def test_a_method_that_fails(self) -> None:
        told = (
            r"Given fails with ValueError: could not .*, at the answer 'x{200}…' to the problem 'Question 1\?'\. Mend"
        )
        with pytest.raises(MarkError, match=told):
            self.check(Given(), [Continuation("1", True), Continuation("x" * 999, True)])

    @pytest.mark.parametrize(
        ("marks", "told"),
        [
            ([1.0], r"Batch gives 1 marks to 2 answers, of which the first is the answer '1'"),
            ([1.0, None], r"Batch gives None, which is no finite number, to the answer '2\.5'"),
            (None, r"Batch fails with TypeError: .* at 2 answers, of which the first is the answer '1'"),
            (KeyError("lost"), r"Batch fails with KeyError: 'lost'"),
        ],
    )
    def test_a_marker_of_all_at_once(self, marks: Any, told: str) -> None:
        with pytest.raises(MarkError, match=rf"task\.reward: {told}"):
            self.check(Batch(marks))

    def test_the_part_of_a_sum_is_named(self) -> None:
        with pytest.raises(MarkError, match=r"^task\.reward: Batch gives 3 marks") as failure:
            self.check(WeightedSum({"a": NumberReward(), "b": Batch([0.0] * 3)}, {"b": 0.0}))
        assert "WeightedSum" not in str(failure.value)

    def test_what_the_loop_explains_is_left_to_it(self) -> None:
        with pytest.raises(torch.OutOfMemoryError):
            self.check(Batch(torch.OutOfMemoryError("full")))
