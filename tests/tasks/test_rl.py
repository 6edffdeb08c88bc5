"""Learning from rewards: what is learned, what is drawn, what a killed run resumes with, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import trained_from_scratch
from made_models import byte_tokenizer, make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.chat import with_chat
from modern_llm.data.rows import PARTS
from modern_llm.data.solutions.problems import prompts_of, read_problems
from modern_llm.data.solutions.settings import ProblemData, SolutionData
from modern_llm.data.text.tokenizers import ByteTokenizer, Tokenizer
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.loading import load_model
from modern_llm.experiment.problems import Asking
from modern_llm.models.decoding.sampling import Sampling
from modern_llm.models.verifier_config import VerifierConfig
from modern_llm.objectives.policy_losses import PolicyLoss
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.reinforcement.evaluation import HeldOut
from modern_llm.reinforcement.rewards import FormatReward, JudgeReward, RuleReward, WeightedSum
from modern_llm.reinforcement.settings import Drawing
from modern_llm.tasks.rl import RL
from modern_llm.tasks.verifier import Verifier
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=16)
SUMS = ProblemData(Arithmetic("instructions", largest=5, held_out=4), "instruction", "output")
T5 = PretrainedModel("google-t5/t5-small")
marked: Counter[str] = Counter()  # questions of all answers that were marked
marks_left: list[int | None] = [None]  # after so many, the process is stopped


class Stopped(BaseException):
    """As a signal that nobody can catch."""


@dataclass(frozen=True)
class SmallLetters(RuleReward):
    """The share of an answer's characters below "@": every group differs, and much can be gained.

    Args:
        fault: what is given for every answer instead.
    """

    fault: float | None = None

    def mark(self, problem: Any, answer: Any) -> float:
        if sum(marked.values()) == marks_left[0]:
            raise Stopped
        marked[problem.question] += 1
        if self.fault is not None:
            return self.fault
        return sum(ord(c) < 64 for c in answer.text) / max(len(answer.text), 1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_from_scratch(tmp_path_factory.mktemp("base") / "run", byte_tokenizer())


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> PretrainedModel:
    """Of other weights and another architecture, with clear preferences."""
    folder, model = tmp_path_factory.mktemp("teacher"), make_model("llama")
    with torch.no_grad():
        model.lm_head.weight *= 5
    model.save_pretrained(folder)
    byte_tokenizer().save(folder)
    return PretrainedModel(str(folder), FullFinetuning())


@pytest.fixture(autouse=True)
def nothing_marked() -> None:
    marked.clear()
    marks_left[:] = [None]


def task(base: Path, steps: int = 4, save_every: int = 1, lr: float = 3e-3, **changes: Any) -> RL:
    trainer = TrainerSettings(max_steps=steps, batch_size=4, optimizer=AdamW(lr=lr, weight_decay=0.0), log_every=1,
                              eval_every=100, save_every=save_every, keep_checkpoints=99,
                              monitor="validation_pass_at_1")  # fmt: skip
    given: dict[str, Any] = {
        "model": ModelFromRun(str(base), FullFinetuning()),
        "trainer": trainer,
        "hardware": HARDWARE,
        "data": SUMS,
        "reward": SmallLetters(),
        "policy_loss": PolicyLoss(),
        "asking": Asking(Sampling(temperature=1.0), 8, True, "strict"),
        "drawing": Drawing(samples=4),
        "evaluation": HeldOut(samples=2),
        "paths": Paths(cache=str(base.parent / "cache")),
    }
    return RL(**{**given, **changes})


def run(made: RL | Verifier, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "reward" in row]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"checkpoints/step_{step:08d}/model.safetensors")


def test_the_reward_rises_and_what_is_logged_is_what_was_drawn(base: Path, tmp_path: Path) -> None:
    metrics = run(task(base, 25, lr=2e-2), tmp_path)
    rows = rows_of(tmp_path)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.3
    assert metrics["evaluation_reward_gain_low"] > 0.2
    # The drawing policy is the policy of the update.
    assert max(row["log_prob_gap"] for row in rows) < 1e-5
    for turn, row in enumerate(rows[-2:], len(rows) - 2):
        groups = [json.loads(line) for line in (tmp_path / "draws" / f"{turn:08d}.jsonl").read_text().splitlines()]
        answers = [answer for group in groups for answer in group["answers"]]
        assert len(groups) == 4
        assert len(answers) == 16
        assert row["reward"] == pytest.approx(sum(a["reward"] for a in answers) / 16, abs=1e-6)
        assert row["answer_tokens"] == pytest.approx(sum(len(a["ids"]) for a in answers) / 16, abs=1e-5)
        tokens = sum(len(a["ids"]) for a in answers)
        assert row["entropy"] == pytest.approx(sum(sum(a["entropies"]) for a in answers) / tokens, abs=1e-5)
        assert row["cut_off_share"] == pytest.approx(sum(not a["ended"] for a in answers) / 16, abs=1e-6)
    # An epoch asks every sum once; old draws are let go of only as checkpoints pass them.
    assert metrics["draws"] == 25
    assert metrics["epochs"] == pytest.approx(25 * 4 / 28)


@pytest.mark.parametrize(
    ("updates", "beta", "lora", "taught"),
    [
        (1, 0.0, FullFinetuning(), 0.0),
        (3, 0.0, FullFinetuning(), 0.5),
        (2, 0.1, LoRA(rank=2, alpha=4, dropout=0.2), 0.0),
    ],
    ids=["one-update", "three-updates-taught", "lora-kl"],
)
def test_a_run_that_is_stopped_anywhere_ends_as_if_it_had_not_been(
    base: Path, teacher: PretrainedModel, tmp_path: Path, updates: int, beta: float, lora: Any, taught: float
) -> None:
    made = task(base, 7, drawing=Drawing(samples=4, updates=updates), model=ModelFromRun(str(base), lora),
                policy_loss=PolicyLoss(beta=beta, mean="answers", teacher=taught),
                teacher=teacher if taught else None, hardware=replace(HARDWARE, eval_batch_size=2))  # fmt: skip
    run(made, tmp_path / "whole")
    # Stopped in the middle of drawing, two answers at once: one of two parts of the draw is on disk.
    marked.clear()
    before = 4 * 3  # of the policy before training: 2 drawn answers and the most likely one to each of 4 sums
    draws = 2 if updates == 1 else 1
    marks_left[0] = before + 16 * draws + 9
    with pytest.raises(Stopped):
        run(made, tmp_path / "broken")
    kept = tmp_path / "broken" / "draws" / f"{draws:08d}.jsonl"
    assert len(kept.read_text().splitlines()) == 2
    marks_left[0] = None
    run(made, tmp_path / "broken")
    for step in (4, 5, 6, 7):  # and torn off behind a step, maybe between the updates of a draw
        shutil.rmtree(tmp_path / "broken" / "checkpoints" / f"step_{step:08d}")
    run(made, tmp_path / "broken")
    one, two = weights(tmp_path / "whole", 7), weights(tmp_path / "broken", 7)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_parts_of_a_sum_are_logged_one_by_one(base: Path, tmp_path: Path) -> None:
    """Also of a draw that a killed run had begun, whose marks are read from the disk."""
    reward = WeightedSum({"small": SmallLetters(), "letter": FormatReward("[a-m]")}, {"letter": 0.25})
    made = task(base, 3, reward=reward, hardware=replace(HARDWARE, eval_batch_size=2), save_every=100)
    made = replace(made, trainer=replace(made.trainer, monitor="validation_reward/letter"))
    marks_left[0] = 12 + 16 + 9
    with pytest.raises(Stopped):
        run(made, tmp_path)
    marks_left[0] = None
    metrics = run(made, tmp_path)
    for turn, row in enumerate(rows_of(tmp_path)):
        groups = [json.loads(line) for line in (tmp_path / "draws" / f"{turn:08d}.jsonl").read_text().splitlines()]
        texts = [answer["text"] for group in groups for answer in group["answers"]]
        small = sum(sum(ord(c) < 64 for c in text) / max(len(text), 1) for text in texts) / 16
        letter = sum(any("a" <= c <= "m" for c in text) for text in texts) / 16
        found = [row[name] for name in ("reward/small", "reward/letter", "reward")]
        assert found == pytest.approx([small, letter, small + 0.25 * letter], abs=1e-6)
    (held_out,) = [
        row for row in map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
        if "validation_reward" in row
    ]  # fmt: skip
    for source, prefix in ((held_out, "validation"), (metrics, "evaluation"), (metrics, "before")):
        whole = source[f"{prefix}_reward/small"] + 0.25 * source[f"{prefix}_reward/letter"]
        assert source[f"{prefix}_reward"] == pytest.approx(whole)
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best["value"] == held_out["validation_reward/letter"]


def test_what_was_drawn_is_not_drawn_again(base: Path, tmp_path: Path) -> None:
    made = task(base, 3, hardware=replace(HARDWARE, eval_batch_size=2), save_every=100)
    marks_left[0] = 12 + 16 * 2 + 9  # in the third draw; no checkpoint has been written
    with pytest.raises(Stopped):
        run(made, tmp_path)
    seen = Counter(marked)
    marks_left[0] = None
    run(made, tmp_path)
    # Eight answers of the third draw had been marked when the ninth was not; then those of selection and evaluation.
    assert sum(marked.values()) - sum(seen.values()) == 16 - 8 + 2 * 12


@pytest.mark.parametrize("taught", [False, True], ids=["alone", "taught"])
def test_micro_batches_change_nothing_but_rounding(
    base: Path, teacher: PretrainedModel, tmp_path: Path, taught: bool
) -> None:
    more = {"policy_loss": PolicyLoss(teacher=0.5), "teacher": teacher} if taught else {}
    for name, size in (("whole", None), ("cut", 1)):
        run(task(base, 3, hardware=replace(HARDWARE, micro_batch_size=size), **more), tmp_path / name)
    one, two = weights(tmp_path / "whole", 1), weights(tmp_path / "cut", 1)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=2e-4)
    assert rows_of(tmp_path / "whole")[0]["loss"] == pytest.approx(rows_of(tmp_path / "cut")[0]["loss"], abs=1e-6)


@pytest.mark.parametrize("name", ["openai-community/gpt2", "made/llama"])
def test_models_of_the_hub_draw_what_they_train(hub: Path, base: Path, tmp_path: Path, name: str) -> None:
    made = task(base, 2, model=PretrainedModel(name, LoRA(rank=2, alpha=4, dropout=0.3)),
                paths=Paths(mirror=str(hub), cache=str(tmp_path / "cache")))  # fmt: skip
    run(made, tmp_path / "run")
    assert max(row["log_prob_gap"] for row in rows_of(tmp_path / "run")) < 1e-4


def test_problems_that_the_judge_knows_are_left_out(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {row["question"] for part in ("train", "selection")
             for row in Arithmetic("solutions", largest=5, held_out=4).rows(part, None).rows}  # type: ignore[arg-type]  # fmt: skip
    judge = Verifier(model=VerifierConfig(max_seq_len=96, d_model=32, n_layers=1, n_heads=4), hardware=HARDWARE,
                     trainer=TrainerSettings(max_steps=2, batch_size=8, eval_every=2), tokenizer=ByteTokenizer(),
                     data=SolutionData(Arithmetic("solutions", largest=5, held_out=4)))  # fmt: skip
    run(judge, tmp_path / "judge")
    reward = WeightedSum({"judge": JudgeReward(str(tmp_path / "judge")), "small": SmallLetters()})
    with pytest.raises(ValueError, match=r"task\.reward: it was trained on all of the 28 problems of the"):
        run(task(base, 2, reward=reward), tmp_path / "same")
    wider = ProblemData(Arithmetic("instructions", largest=6, held_out=8), "instruction", "output")
    every = {part: read_problems(wider, part, None)[0] for part in PARTS}
    assert 0 < sum(problem.question in known for problem in every["train"]) < len(every["train"]) - 5
    capsys.readouterr()
    run(task(base, 4, reward=reward, data=wider, max_train_problems=5), tmp_path / "wider")
    drawn = {json.loads(line)["question"] for path in (tmp_path / "wider" / "draws").glob("*.jsonl")
             for line in path.read_text().splitlines()}  # fmt: skip
    assert len(drawn) == 5
    assert not (drawn | set(marked)) & known
    protocol = json.loads((tmp_path / "wider" / "result.json").read_text())["protocol"]
    left_out = {part: sum(problem.question in known for problem in found) for part, found in every.items()}
    assert protocol["left_out_because_the_verifier_knows_them"] == left_out
    told = capsys.readouterr().err
    assert f"{left_out['train']} of {len(every['train'])} problems of the train part are left out" in told


@pytest.mark.parametrize("lora", [FullFinetuning(), LoRA(rank=2, alpha=4)], ids=["whole", "lora"])
def test_the_reference_is_the_policy_before(base: Path, tmp_path: Path, lora: Any) -> None:
    run(task(base, 4, model=ModelFromRun(str(base), lora), policy_loss=PolicyLoss(beta=0.1)), tmp_path)
    divergence = [row["kl_estimate"] for row in rows_of(tmp_path)]
    assert divergence[0] == pytest.approx(0, abs=1e-9)
    assert divergence[-1] > 1e-6


def next_tokens(model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """(K, V) log-probabilities in front of each token of an answer."""
    with torch.no_grad():
        return model(torch.tensor([prompt + answer[:-1]])).logits[0, len(prompt) - 1 :].log_softmax(-1)


def test_a_student_comes_nearer_to_its_teacher_whatever_the_rewards_are(
    base: Path, teacher: PretrainedModel, tmp_path: Path
) -> None:
    made = task(base, 40, lr=2e-2, reward=SmallLetters(fault=0.25), save_every=40, teacher=teacher,
                evaluation=HeldOut(samples=16), policy_loss=PolicyLoss(advantage="none", teacher=1.0))  # fmt: skip
    metrics, rows = run(made, tmp_path), rows_of(tmp_path)
    assert metrics["unanimous_share"] == 1
    other = AutoModelForCausalLM.from_pretrained(teacher.name).eval()
    tokenizer = with_chat(byte_tokenizer())
    prompts: dict[str, list[int]] = {}
    for part in ("train", "evaluation"):
        problems, _ = read_problems(SUMS, part, None)  # type: ignore[arg-type]
        ids = prompts_of(SUMS, problems, tokenizer, [tokenizer.eos_id], True)
        prompts |= {problem.question: prompt for problem, prompt in zip(problems, ids, strict=True)}

    # What is logged is what transformers makes of the drawn answers.
    for turn in (0, 39):
        each = []
        for line in (tmp_path / "draws" / f"{turn:08d}.jsonl").read_text().splitlines():
            group = json.loads(line)
            for answer in group["answers"]:
                known = next_tokens(other, prompts[group["question"]], answer["ids"])
                theirs = known[range(len(answer["ids"])), answer["ids"]].tolist()
                each.append(sum(own - his for own, his in zip(answer["log_probs"], theirs, strict=True)) / len(theirs))
        assert rows[turn]["teacher_kl_estimate"] == pytest.approx(sum(each) / 16, abs=1e-4)

    # KL(student || teacher) of the next token over the whole vocabulary, behind every token of held-out solutions.
    divergences = []
    for student in (base, tmp_path):
        loaded = load_model(ModelFromRun(str(student), FullFinetuning()), Runtime(HARDWARE), None, [], train=False)
        loaded.model.eval()
        found = []
        for problem in problems:
            texts = (prompts[problem.question], tokenizer.encode(problem.solution)[:8])
            own, his = (next_tokens(model, *texts) for model in (loaded.decoder, other))
            found += (own.exp() * (own - his)).sum(-1).tolist()
        divergences.append(sum(found) / len(found))
    before, after = divergences
    assert after < 0.75 * before
    assert metrics["evaluation_teacher_kl_estimate"] == pytest.approx(after, rel=0.25)
    gain = metrics["before_teacher_kl_estimate"] - metrics["evaluation_teacher_kl_estimate"]
    assert metrics["evaluation_teacher_kl_estimate_gain"] == pytest.approx(gain) != 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: Tokenizer(t.backend, eos_id=5), r"a text ends with '.' there and with '<\|endoftext\|>' here"),
        (lambda t: with_one_more(t), r"id 257 is '<\|more\|>' there and None here"),
    ],
    ids=["end", "vocabulary"],
)
def test_a_teacher_has_the_policys_tokens(base: Path, tmp_path: Path, make: Any, message: str) -> None:
    other = trained_from_scratch(tmp_path / "other", make(byte_tokenizer()))
    made = task(base, teacher=ModelFromRun(str(other), FullFinetuning()), policy_loss=PolicyLoss(teacher=1.0))
    with pytest.raises(ValueError, match=r"task\.teacher=.*: has another tokenizer than the policy: " + message):
        run(made, tmp_path / "run")
    assert not marked  # nothing has been drawn


def test_a_run_goes_on_with_its_own_teacher_alone(base: Path, teacher: PretrainedModel, tmp_path: Path) -> None:
    """Also where only its adapters are others."""
    taught: dict[str, Any] = {"policy_loss": PolicyLoss(teacher=0.5)}
    for seed in (0, 1):
        run(task(base, 1, lr=1e-2, seed=seed, model=replace(teacher, lora=LoRA(rank=2))), tmp_path / f"{seed}")
    first, second = (ModelFromRun(str(tmp_path / f"{seed}"), FullFinetuning()) for seed in (0, 1))
    run(task(base, 2, teacher=first, **taught), tmp_path / "run")
    with pytest.raises(ValueError, match="the teacher or how answers are drawn have changed"):
        run(task(base, 4, teacher=second, **taught), tmp_path / "run")
    run(task(base, 4, teacher=first, **taught), tmp_path / "run")


def with_one_more(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.backend.add_special_tokens(["<|more|>"])
    return tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": T5}, "^model: an encoder-decoder holds no conversation"),
        (
            {"model": T5, "asking": Asking(Sampling(temperature=1.0), 8, False)},
            "^model: an encoder-decoder shares no prompt",
        ),
        (
            {"teacher": T5, "policy_loss": PolicyLoss(teacher=1.0)},
            r"^task\.teacher: an encoder-decoder shares no prompt",
        ),
    ],
    ids=["chat", "plain", "teacher"],
)
def test_policy_and_teacher_are_decoders(
    hub: Path, base: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    made = task(base, **changes, paths=Paths(mirror=str(hub), cache=str(tmp_path / "cache")))
    with pytest.raises(ValueError, match=message):
        run(made, tmp_path / "run")


@dataclass(frozen=True)
class OnSome(RuleReward):
    """Tells answers apart for some problems alone."""

    def mark(self, problem: Any, answer: Any) -> float:
        return float(sum(map(ord, answer.text))) if problem.index % 3 == 0 else 0.5


@pytest.mark.parametrize(("unanimous", "rows"), [("keep", None), ("drop", None), ("replace", 4)])
def test_groups_of_one_reward(base: Path, tmp_path: Path, unanimous: Any, rows: int | None) -> None:
    drawing = Drawing(samples=3, unanimous=unanimous, most_rounds=20)
    metrics = run(
        task(base, 3, reward=OnSome(), drawing=drawing, policy_loss=PolicyLoss(mean="answers"), save_every=100),
        tmp_path,
    )
    for turn in range(3):
        groups = [json.loads(line) for line in (tmp_path / "draws" / f"{turn:08d}.jsonl").read_text().splitlines()]
        useful = sum(group["problem"] % 3 == 0 for group in groups)
        share = rows_of(tmp_path)[turn]["unanimous_share"]
        assert share == pytest.approx(1 - useful / len(groups), abs=1e-6)
        if rows is not None:
            assert useful >= rows
        else:
            assert len(groups) == 4
    assert 0 < metrics["unanimous_share"] < 1


def test_what_cannot_be_learned_from(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"3 draws in a row \(12 problems\) gave nothing to learn from.*0\.25"):
        run(task(base, 5, reward=SmallLetters(fault=0.25), drawing=Drawing(samples=2, patience=3)), tmp_path / "same")
    assert not list((tmp_path / "same" / "checkpoints").glob("step*"))
    with pytest.raises(ValueError, match="SmallLetters"):
        run(task(base, 5, reward=SmallLetters(fault=float("nan"))), tmp_path / "nan")
    with pytest.raises(ValueError, match=r"task\.asking\.max_new_tokens=150: no problem fits"):
        run(task(base, asking=Asking(Sampling(temperature=1.0), 150, True, "strict")), tmp_path / "long")


def test_a_policy_whose_texts_have_no_end(base: Path, hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "models/made/llama", tmp_path / "model")
    (tmp_path / "model" / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model\.name='.*': its tokenizer names no eos_token.*Name one in"):
        run(task(base, model=PretrainedModel(str(tmp_path / "model"))), tmp_path / "run")
    assert not marked


@dataclass(frozen=True)
class Near(RuleReward):
    """How near the characters of an answer are to one of them."""

    def mark(self, problem: Any, answer: Any) -> float:
        return -sum(min(abs(ord(c) - 55), 100) for c in answer.text) / max(len(answer.text), 1)


def test_a_policy_that_collapses_is_told_of_once(base: Path, tmp_path: Path) -> None:
    made = task(base, 60, lr=0.1, save_every=100, reward=Near(), drawing=Drawing(samples=4, patience=3),
                policy_loss=PolicyLoss(advantage="standardised"))  # fmt: skip
    with (
        pytest.warns(UserWarning, match="the entropy of the policy has fallen") as given,
        pytest.raises(ValueError, match="gave nothing to learn from"),
    ):
        run(made, tmp_path)
    entropies, cut_off = [], []
    for path in sorted((tmp_path / "draws").glob("*.jsonl")):
        answers = [answer for line in path.read_text().splitlines() for answer in json.loads(line)["answers"]]
        each = [entropy for answer in answers for entropy in answer["entropies"]]
        entropies.append(sum(each) / len(each))
        cut_off.append(sum(not answer["ended"] for answer in answers) / len(answers))
    told = [str(warning.message) for warning in given]
    low = next(entropy for entropy in entropies if entropy < 0.05 * entropies[0])
    expected = f"has fallen to {low:.3g} nats a token, from {entropies[0]:.3g}: "
    (fallen,) = [text for text in told if "the entropy of the policy" in text]
    assert expected in fallen
    assert "Lower trainer.optimizer.lr" in fallen
    share = next(share for share in cut_off if share > 0.95)
    (endless,) = [text for text in told if "do not end within" in text]
    assert endless.startswith(f"{share:.0%} of the answers do not end within task.asking.max_new_tokens=8. Raise it")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: Drawing(samples=1), r"task\.drawing\.samples=1"),
        (lambda base: Drawing(updates=0), r"task\.drawing\.updates=0"),
        (lambda base: HeldOut(samples=0), r"task\.evaluation\.samples=0"),
        (lambda base: HeldOut(problems=0), r"task\.evaluation\.problems=0"),
        (lambda base: task(base, asking=Asking(Sampling(temperature=0.7), 8, True)), r"sampling\.temperature=0\.7"),
        (lambda base: task(base, asking=Asking(Sampling(top_k=5), 8, True)), r"sampling\.top_k=5"),
        (lambda base: task(base, hardware=replace(HARDWARE, sharding="full")), r"hardware\.sharding='full'"),
        (lambda base: task(base, objective_metric="loss"), r"task\.objective_metric='loss'"),
        (lambda base: task(base, policy_loss=PolicyLoss(teacher=1.0)), r"policy_loss\.teacher=1\.0: weighs a teacher"),
        (lambda base: task(base, teacher=PretrainedModel("gpt2")), r"policy_loss\.teacher=0\.0: leaves task\.teacher"),
    ],
)
def test_impossible_settings(base: Path, make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(base)
