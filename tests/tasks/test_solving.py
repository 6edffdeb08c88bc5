"""Many answers from one prefill: the same as from whole prompts, and never sampled twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bases import trained_from_scratch
from made_models import byte_tokenizer

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.solutions.problems import Problem
from modern_llm.data.solutions.settings import MOST_SAMPLES, ProblemData
from modern_llm.evaluation.rollouts import GREEDY_SAMPLE, AttemptFile, solve
from modern_llm.experiment.problems import Asking, ask, load_solver, most_likely_answers
from modern_llm.models.decoding.generation import continue_ids
from modern_llm.models.decoding.sampling import GREEDY, Sampling
from modern_llm.pretrained.loaded import LoadedModel
from modern_llm.pretrained.settings import FullFinetuning, ModelFromRun
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware

CPU = Hardware(device="cpu", precision="fp32", eval_batch_size=4, num_threads=1)
PROMPTS = [[3, 50, 60, 70, 80], [9, 8], [40, 41, 42]]
WARM = Sampling(temperature=1.5)


def solved(loaded: LoadedModel, path: Path, n: int = 5, **changes: Any) -> Any:
    given: dict[str, Any] = {"max_new_tokens": 6, "sampling": WARM, "batch_size": 3, "seed": 2} | changes
    file = given.pop("file", None) or AttemptFile(path, "settings")
    return solve(loaded.model, loaded.tokenizer, PROMPTS, n, file=file, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["own", "llama", "gpt2"])
@pytest.mark.parametrize(
    "sampling", [WARM, Sampling(temperature=1.5, repetition_penalty=1.3), Sampling(temperature=1.5, lookup=3)]
)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_shared_prompt_gives_the_answers_of_whole_prompts(
    load: Callable[..., LoadedModel], tmp_path: Path, kind: str, sampling: Sampling, batch_size: int
) -> None:
    """In batches that cut the answers to a problem, and in one that holds all problems."""
    loaded = load(kind)
    found = solved(loaded, tmp_path / "a.jsonl", sampling=sampling, batch_size=batch_size)
    for number, (prompt, attempts) in enumerate(zip(PROMPTS, found, strict=True)):
        model: Any = loaded.model
        options: dict[str, Any] = {"max_new_tokens": 6}
        (greedy,) = continue_ids(model, loaded.tokenizer, [prompt], sampling=GREEDY, **options)
        assert attempts.greedy == greedy
        for j, sample in enumerate(attempts.samples):
            seed = (2 * 2**31 + number) * MOST_SAMPLES + j
            (alone,) = continue_ids(model, loaded.tokenizer, [prompt], sampling=sampling, seed=seed, **options)
            assert sample == alone


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_ended_answers_change_nothing_for_the_others(load: Callable[..., LoadedModel], kind: str) -> None:
    """Stop strings that end rows at different times, padding included: each row as by itself."""
    from modern_llm.evaluation.answering import write_answers

    loaded, prompts = load(kind), [[3, 50, 60, 70], [9, 8], [40, 41, 42], [77, 78, 79, 80, 81]]
    model: Any = loaded.model
    options: dict[str, Any] = {"max_new_tokens": 24}
    whole = write_answers(model, loaded.tokenizer, prompts, batch_size=4, **options)
    options["stop"] = [whole[0].text[4], whole[1].text[9]]
    together = write_answers(model, loaded.tokenizer, prompts, batch_size=4, **options)
    alone = [write_answers(model, loaded.tokenizer, [prompt], batch_size=1, **options)[0] for prompt in prompts]
    assert together == alone
    assert len({len(answer.text) for answer in together}) > 1


def test_what_was_sampled_is_not_sampled_again(
    load: Callable[..., LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modern_llm.evaluation import rollouts

    loaded, path = load("llama"), tmp_path / "a.jsonl"
    whole = solved(loaded, path)
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3 * 6
    path.write_bytes(b"".join(lines[:8]) + lines[8][:10])  # a line that was not written to its end
    written = 0
    write = rollouts.continue_owned

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal written
        answers = write(*args, **options)
        written += len(answers)
        return answers

    monkeypatch.setattr(rollouts, "continue_owned", counted)
    assert solved(loaded, path) == whole
    assert written == 18 - 8
    assert path.read_bytes() == b"".join(lines)
    assert solved(loaded, path) == whole
    assert written == 18 - 8


@pytest.mark.parametrize("kind", ["own", "gpt2"])
def test_a_run_that_is_cut_off_has_written_what_had_ended(
    load: Callable[..., LoadedModel], tmp_path: Path, kind: str
) -> None:
    """And goes on to the same answers, of which none is sampled again."""
    loaded, sampling = load(kind), Sampling(temperature=3.0)
    options: dict[str, Any] = {"max_new_tokens": 40, "stop": ["e", "a", "t", "n"], "sampling": sampling, "n": 9}
    whole = solved(loaded, tmp_path / "whole.jsonl", **options)
    marked: list[tuple[int, str]] = []

    def cut_off(place: int, text: str) -> dict[str, Any]:
        if len(marked) == 14:
            raise KeyboardInterrupt
        marked.append((place, text))
        return {}

    path = tmp_path / "cut.jsonl"
    with pytest.raises(KeyboardInterrupt):
        solved(loaded, path, describe=cut_off, **options)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["problem"], row["text"]) for row in rows] == marked
    assert len(rows) == 14
    orders = [[row["sample"] for row in rows if row["problem"] == number] for number in range(3)]
    assert orders != [sorted(order) for order in orders]  # short answers are not held back by long ones
    done: list[tuple[int, int]] = []
    again = solved(loaded, path, describe=lambda place, text: marked.append((place, text)) or {},
                   progress=lambda *told: done.append(told), **options)  # fmt: skip
    assert again == whole
    assert len(marked) == 3 * 10
    assert [told for told, _ in done] == sorted(told for told, _ in done)
    assert done[-1] == (3, 3)
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_answers_stand_in_the_file_with_what_is_said_of_them(load: Callable[..., LoadedModel], tmp_path: Path) -> None:
    found = solved(load("llama"), tmp_path / "a.jsonl", greedy=False, numbers=[7, 3, 5],
                   describe=lambda place, text: {"letters": len(text), "place": place})  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["sample"]) for row in rows] == [(p, s) for p in (3, 5, 7) for s in range(5)]
    assert all(row["letters"] == len(row["text"]) for row in rows)
    assert found[1].greedy is None
    assert [s.text for s in found[1].samples] == [row["text"] for row in rows if row["place"] == 1]


@pytest.mark.parametrize("chat", [False, True])
def test_answers_side_by_side_are_those_of_one_problem_at_a_time(tmp_path: Path, chat: bool) -> None:
    """By a model that writes "77", whatever it is asked."""
    seven = byte_tokenizer().encode("7")[0]
    folder, runtime = trained_from_scratch(tmp_path / "run", byte_tokenizer(), always=seven), Runtime(CPU)
    loaded = load_solver(ModelFromRun(str(folder), FullFinetuning()), runtime, None)
    data = ProblemData(Arithmetic("instructions"), "instruction", "output")  # whose rows are not read
    solutions = {"short?": "77", "much longer than the other?": "7", "x" * 200: "77", "y?": "#### 77"}
    problems = [Problem(i, q, a, q) for i, (q, a) in enumerate(solutions.items())]
    asking = Asking(max_new_tokens=2, chat=chat, reading="flexible")
    texts, right = most_likely_answers(loaded, runtime, data, problems, asking)
    assert texts == ["77", "77", "", "77"]
    assert right == [True, False, False, True]
    path = tmp_path / "answers.jsonl"
    fitting, attempts = ask(loaded, runtime, data, problems, 1, asking, path=path, batch_size=2, seed=0)
    assert [problem.index for problem in fitting] == [0, 1, 3]
    assert [a.greedy.text for a in attempts if a.greedy is not None] == [texts[problem.index] for problem in fitting]
    rows = [row for row in map(json.loads, path.read_text().splitlines()) if row["sample"] == GREEDY_SAMPLE]
    assert {row["problem"]: row["correct"] for row in rows} == {p.index: right[p.index] for p in fitting}


class TestRefusals:
    def test_other_settings(self, tmp_path: Path) -> None:
        AttemptFile(tmp_path / "a", "one").add([{"problem": 0, "sample": 0, "text": "x", "ended": True}])
        with pytest.raises(ValueError, match="with other settings"):
            AttemptFile(tmp_path / "a", "other")

    def test_a_damaged_line(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_text('{"problem": 0}\n{}\n')
        with pytest.raises(ValueError, match="line 1: is no answer"):
            AttemptFile(tmp_path / "a", "")

    @pytest.mark.parametrize("n", [0, MOST_SAMPLES + 1])
    def test_no_or_too_many_samples(self, load: Callable[..., LoadedModel], tmp_path: Path, n: int) -> None:
        with pytest.raises(ValueError, match=f"n={n}: must lie between"):
            solved(load("llama"), tmp_path / "a", n)
