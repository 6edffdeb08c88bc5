"""Marked answers: parts that share no problem, rows that cannot be used, and the texts of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.rows import FileRows, HubRows
from modern_llm.data.solutions.problems import prompts_of, read_problems
from modern_llm.data.solutions.read import PARTS, Solutions, SolutionWriter, read_solutions
from modern_llm.data.solutions.settings import ProblemData, SolutionData, SolutionText, problem_id
from modern_llm.data.text.tokenizers import ByteTokenizer, Tokenizer

TOKENIZER: Tokenizer = ByteTokenizer().prepare(None, Path(), None)  # type: ignore[arg-type]


def row(problem: int, correct: Any, answer: str = "#### 1", **more: Any) -> dict[str, Any]:
    return {"question": f"Question {problem}?", "answer": answer, "correct": correct, **more}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def many(problems: range) -> list[dict[str, Any]]:
    """Four answers to each problem, of which one or two are right."""
    return [row(p, j <= p % 2, f"{p} and {j}") for p in problems for j in range(4)]


def disjoint(parts: dict[Any, Solutions]) -> bool:
    sets = [{r.problem for r in parts[part].rows} for part in PARTS]
    return not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


class TestParts:
    def test_one_file_is_cut_by_problems(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", many(range(30)))
        parts = read_solutions(SolutionData(FileRows(path, None, 5)), None)
        assert disjoint(parts)
        assert [len(parts[part].rows) for part in PARTS] == [80, 20, 20]
        assert [len(parts[part].problems) for part in PARTS] == [20, 5, 5]
        everything = sorted((r.index, r.answer) for part in PARTS for r in parts[part].rows)
        assert [index for index, _ in everything] == list(range(120))

    def test_what_is_reported_on_is_left_out_of_training_and_counted(self, tmp_path: Path) -> None:
        """Two of the evaluation's problems stand in the training file, one written with other quotes and spaces."""
        train = many(range(30))
        train[0]["question"] = train[1]["question"] = "  what is   \u2018it\u2019?"
        other = [
            {**r, "question": "What is 'it'?"} if r["question"] == "Question 50?" else r for r in many(range(48, 60))
        ]
        other += many(range(3, 4))
        data = SolutionData(FileRows(written(tmp_path / "a.jsonl", train), written(tmp_path / "b.jsonl", other), 5))
        parts = read_solutions(data, None)
        assert disjoint(parts)
        assert parts["train"].skipped == {"of a problem that is reported on": 6}
        assert len(parts["evaluation"].rows) == 52
        assert len(parts["train"].rows) + len(parts["selection"].rows) == 120 - 6

    def test_two_files_of_one_name_are_two_files(self, tmp_path: Path) -> None:
        (tmp_path / "x").mkdir()
        data = SolutionData(
            FileRows(
                written(tmp_path / "a.jsonl", many(range(20))), written(tmp_path / "x/a.jsonl", many(range(40, 60))), 3
            )
        )
        parts = read_solutions(data, None)
        assert [len(parts[part].problems) for part in PARTS] == [17, 3, 20]

    def test_samples_hold_whole_problems(self, tmp_path: Path) -> None:
        data = SolutionData(FileRows(written(tmp_path / "a.jsonl", many(range(40))), None, 10))
        parts = read_solutions(data, None, max_train_problems=7, max_evaluation_problems=4, seed=1)
        assert [len(parts[part].rows) for part in PARTS] == [28, 40, 16]
        again = read_solutions(data, None, max_train_problems=7, max_evaluation_problems=4, seed=1)
        assert again == parts
        assert read_solutions(data, None, max_train_problems=7, seed=2)["train"].rows != parts["train"].rows

    def test_made_sums_are_those_of_the_instructions(self) -> None:
        """A pipeline's verifier never learns what its solver is asked."""
        parts = read_solutions(SolutionData(Arithmetic("solutions")), None)
        asked, _ = read_problems(ProblemData(Arithmetic("instructions"), "instruction", "output"), "evaluation", None)
        assert {p.identity for p in asked} == set(parts["evaluation"].problems)
        assert disjoint(parts)

    def test_the_published_solutions(self, mirror: Path) -> None:
        parts = read_solutions(SolutionData(HubRows("openai/gsm8k-solutions", "main", held_out=60)), str(mirror))
        assert disjoint(parts)
        assert [len(parts[part].problems) for part in PARTS] == [499, 60, 100]
        assert [len(parts[part].rows) for part in PARTS] == [1996, 240, 400]
        gsm8k = ProblemData(HubRows("openai/gsm8k", "main", "test"))
        asked, _ = read_problems(gsm8k, "evaluation", str(mirror))
        known = {*parts["train"].problems, *parts["selection"].problems}
        # All of them are questions of the test split, and the evaluation's hundred remain for best-of-n.
        assert {p.identity for p in asked} - known == set(parts["evaluation"].problems)


class TestRows:
    def test_empty_ones_are_left_out_and_counted(self, tmp_path: Path) -> None:
        rows = [*many(range(20)), row(3, True, "  "), {"question": None, "answer": "x", "correct": False}]
        parts = read_solutions(SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3)), None)
        assert parts["train"].skipped == {"without a question or an answer": 2}

    @pytest.mark.parametrize("mark", [None, "true", 2, "yes"])
    def test_a_mark_that_is_none_is_refused_with_its_place(self, tmp_path: Path, mark: Any) -> None:
        rows = [*many(range(20)), row(1, mark)]
        with pytest.raises(ValueError, match=rf"a\.jsonl, split 'a\.jsonl', example 80: correct={mark!r} is neither"):
            read_solutions(SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3)), None)

    @pytest.mark.parametrize("yes", [1, 1.0, True])
    def test_numbers_are_marks(self, tmp_path: Path, yes: Any) -> None:
        rows = [{**r, "correct": yes if r["correct"] else 0} for r in many(range(20))]
        parts = read_solutions(SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3)), None)
        assert all(type(r.correct) is bool for r in parts["train"].rows)

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", many(range(20)))
        with pytest.raises(ValueError, match=r"has no column 'text'\. It has question, answer, correct"):
            read_solutions(SolutionData(FileRows(path, None, 3), answer_column="text"), None)

    def test_a_row_without_a_column_is_named(self, tmp_path: Path) -> None:
        rows = [*many(range(20)), {"question": "Q", "correct": True}]
        with pytest.raises(ValueError, match="example 80: has no 'answer'"):
            read_solutions(SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3)), None)

    @pytest.mark.parametrize("mark", [True, False])
    def test_a_part_with_one_kind_of_answer_is_refused(self, tmp_path: Path, mark: bool) -> None:
        rows = [row(p, mark) for p in range(20)]
        kind = "right" if mark else "wrong"
        with pytest.raises(ValueError, match=f"the train part has only {kind} answers"):
            read_solutions(SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3)), None)

    def test_too_few_problems(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", many(range(6)))
        with pytest.raises(ValueError, match=r"held_out=3: leaves nothing of the 6 rows of the problems of a\.jsonl"):
            read_solutions(SolutionData(FileRows(path, None, 3)), None)


class TestTexts:
    def test_a_text_is_the_template_behind_the_start_and_in_front_of_the_end(self) -> None:
        writer = SolutionWriter(SolutionText(remove="<<[^>]*>>"), TOKENIZER, [5], 99)
        (ids,) = writer.ids([" A {b}? "], ["1 + 1 = <<1+1=2>>2 {c}"])
        assert (ids[0], ids[-1]) == (5, TOKENIZER.eos_id)
        assert TOKENIZER.decode(ids[1:-1]) == "Question: A {b}?\nAnswer: 1 + 1 = 2 {c}"

    def test_a_long_text_keeps_start_and_answer(self) -> None:
        writer = SolutionWriter(SolutionText(), TOKENIZER, [5], 20)
        (ids,) = writer.ids(["long " * 30], ["the answer"])
        short = writer.shortened(ids)
        assert len(short) == 20
        assert short[0] == 5
        assert short[1:] == ids[-19:]
        assert writer.shortened(short) == short
        assert writer.truncated == 1

    def test_texts_that_are_too_long_are_left_out_and_counted(self, tmp_path: Path) -> None:
        rows = [*many(range(20)), *(row(p, True, "long " * 99) for p in range(20))]
        parts = read_solutions(SolutionData(FileRows(written(tmp_path / "a.jsonl", rows), None, 3)), None)
        items, kept = SolutionWriter(SolutionText(), TOKENIZER, [], 80).encode("x", "train", parts["train"])
        assert kept.skipped == {"longer than 80 tokens": 14}
        assert [item.label for item in items] == [int(r.correct) for r in kept.rows]
        with pytest.raises(ValueError, match="without texts longer than 9 tokens: the train part has no answers"):
            SolutionWriter(SolutionText(), TOKENIZER, [], 9).encode("x", "train", parts["train"])

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"template": "{question}"}, r"task\.text\.template='\{question\}': must name \{question\} and \{answer\}"),
            ({"template": "{question} {answer} {x}"}, "and nothing else"),
            ({"template": "{question} {answer"}, "Double the braces"),
            ({"remove": "("}, r"task\.text\.remove='\(': no regular expression"),
        ],
    )
    def test_impossible_templates(self, settings: dict[str, str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SolutionText(**settings)


class TestProblems:
    def test_each_is_asked_once(self, tmp_path: Path) -> None:
        rows = [{"question": q, "answer": "4"} for q in ("What?", "what?  ", "Who?")]
        path = written(tmp_path / "a.jsonl", rows)
        problems, _ = read_problems(ProblemData(FileRows(path, path, 1)), "evaluation", None)
        assert [p.question for p in problems] == ["What?", "Who?"]

    def test_prompts(self) -> None:
        data, problems = ProblemData(Arithmetic("instructions"), "instruction", "output"), []
        problems, _ = read_problems(data, "evaluation", None, limit=2)
        plain = prompts_of(data, problems, TOKENIZER, [0], chat=False)
        assert TOKENIZER.decode(plain[0][1:]) == f"Question: {problems[0].question}\nAnswer:"
        chat = TOKENIZER.with_chat_template("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}!")
        (ids, _) = prompts_of(data, problems, chat, [0], chat=True)
        assert TOKENIZER.decode(ids) == f"<user>{problems[0].question}!"
        with pytest.raises(ValueError, match="has no chat template"):
            prompts_of(data, problems, TOKENIZER, [], chat=True)

    def test_an_empty_one_is_refused(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.jsonl", [{"question": "Q", "answer": "1"}, {"question": "", "answer": "1"}])
        with pytest.raises(ValueError, match="example 1: has no question or no answer"):
            read_problems(ProblemData(FileRows(path, path, 1)), "evaluation", None)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"prompt": "Solve:"}, r"task\.data\.prompt"),
            ({"chat_prompt": "{x}"}, r"chat_prompt"),
            ({"stop": [""]}, "stop"),
        ],
    )
    def test_impossible_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ProblemData(Arithmetic("instructions"), **settings)


def test_a_problem_is_known_however_it_is_written() -> None:
    assert problem_id("It’s  A “test”?\n") == problem_id('it\'s a "test"?')
    assert problem_id("What is 3 + 4?") != problem_id("What is 3 - 4?")
