"""Sums made on the spot, against Python's own arithmetic."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from modern_llm.data.arithmetic import Arithmetic
from modern_llm.data.rows import PARTS
from modern_llm.data.solutions.problems import read_problems
from modern_llm.data.solutions.read import read_solutions
from modern_llm.data.solutions.settings import ProblemData, SolutionData
from modern_llm.evaluation.metrics.numbers import flexible_answer, reference_answer, strict_answer

SETTINGS = [
    {},
    {"operations": "*", "largest": 40},
    {"terms": 3, "operations": "+-"},
    {"terms": 3, "operations": "+-*", "largest": 6},
    {"terms": 5, "operations": "-*+", "largest": 99, "questions": 600},
    {"terms": 9, "operations": "+-*", "largest": 10**12, "questions": 200},
]
IDS = ["default", "products", "left to right", "precedence", "drawn", "large"]


def made(kind: str, **settings: Any) -> list[dict[str, Any]]:
    """Rows of all parts, in their order."""
    source = Arithmetic(kind, **settings)  # type: ignore[arg-type]
    parts = [source.rows(part, None) for part in PARTS]
    return [row for _, row in sorted((i, row) for p in parts for i, row in zip(p.indices, p.rows, strict=True))]


def asked(question: str) -> str:
    return question.removeprefix("What is ").removesuffix("?")


class TestAnswers:
    @pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
    def test_every_row_is_what_python_makes_of_it(self, settings: dict[str, Any]) -> None:
        """Each step is part of what is left of the question, and leaves its value as it was."""
        for row in made("instructions", **settings):
            expression = asked(row["instruction"])
            value = eval(expression)
            *steps, answer = row["output"].split("\n")
            assert answer == f"#### {value}"
            words = expression.split()
            assert len(steps) == settings.get("terms", 2) - 1
            for step in steps:
                done, _, result = step.partition(" = ")
                place = next(i for i in range(len(words)) if words[i : i + 3] == done.split())
                words[place : place + 3] = [result]
                assert eval(" ".join(words)) == value
            assert words == [str(value)]

    @pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
    def test_a_wrong_one_differs_in_its_last_result_alone(self, settings: dict[str, Any]) -> None:
        rows, pairs = made("solutions", **settings), made("preferences", **settings)
        assert len(rows) == 2 * len(pairs)
        for right, wrong, pair in zip(rows[::2], rows[1::2], pairs, strict=True):
            assert (right["correct"], wrong["correct"]) == (True, False)
            assert (pair["prompt"], pair["chosen"]) == (right["question"], right["answer"])
            assert (wrong["question"], wrong["answer"]) == (pair["prompt"], pair["rejected"])
            value, other = reference_answer(right["answer"]), reference_answer(wrong["answer"])
            assert int(value) == eval(asked(right["question"])) != int(other)
            for text, number in ((right["answer"], value), (wrong["answer"], other)):
                assert strict_answer(text) == flexible_answer(text) == number
                assert text.endswith(f" = {number}\n#### {number}")
            assert right["answer"].rpartition(" = ")[0] == wrong["answer"].rpartition(" = ")[0]

    def test_small_sums_are_what_they_have_always_been(self) -> None:
        """Figures that were published, and their rows, before sums had more than two terms."""
        rows = made("solutions")
        sums = [(a, b) for a in range(10) for b in range(10)]
        answers = [f"{a} + {b} = {n}\n#### {n}" for a, b in sums for n in (a + b, a + b + 1 + (3 * a + 5 * b) % 4)]
        assert [row["answer"] for row in rows] == answers
        assert [row["question"] for row in rows[::2]] == [f"What is {a} + {b}?" for a, b in sums]
        first = {
            "instructions": "245520de5f55f4ccb30dc6010afc0ac0 1e70150975d1026562743035dc2f92ff "
            "6dc63e6da1b45970e5987ea6c790a0b9",
            "preferences": "4db341754784bb55b3b89ef8695cce5c faa54d829bced66ca4ba718b46f4ec7b "
            "e64339906e7aa4a627771d2ef3918476",
            "solutions": "9a6090ebad230953c992cfbe4168bd61 09302fc354fad785591fc877c6bf32ae "
            "c4c61032f773894ebc8497a203a03e1c",
        }
        for kind, fingerprints in first.items():
            source = Arithmetic(kind)  # type: ignore[arg-type]
            assert " ".join(source.rows(part, None).fingerprint for part in PARTS) == fingerprints
        assert Arithmetic("solutions", largest=5, held_out=6).rows("train", None, 4, 3).indices == [
            32, 33, 46, 47, 48, 49, 62, 63,
        ]  # fmt: skip


class TestQuestions:
    @pytest.mark.parametrize("settings", SETTINGS, ids=IDS)
    def test_each_is_asked_once_in_one_part_whatever_the_kind(self, settings: dict[str, Any]) -> None:
        source = Arithmetic("instructions", held_out=20, **settings)
        problems = {p: read_problems(ProblemData(source, "instruction", "output"), p, None)[0] for p in PARTS}
        known = [problem.identity for part in PARTS for problem in problems[part]]
        base, joins = settings.get("largest", 9) + 1, len(settings.get("operations", "+"))
        terms = settings.get("terms", 2)
        assert len(set(known)) == len(known) == settings.get("questions", base**terms * joins ** (terms - 1))
        solutions = read_solutions(SolutionData(Arithmetic("solutions", held_out=20, **settings)), None)
        for part in PARTS:
            assert set(solutions[part].problems) == {problem.identity for problem in problems[part]}
        assert [len(problems[part]) for part in PARTS[1:]] == [20, 20]

    def test_the_same_settings_give_the_same_rows(self) -> None:
        settings = {"terms": 4, "operations": "+-", "largest": 99, "questions": 300}
        one, other = (Arithmetic("instructions", **settings).rows("train", None) for _ in range(2))  # type: ignore[arg-type]
        assert one == other
        limited = Arithmetic("instructions", **settings).rows("train", None, 50, 1)  # type: ignore[arg-type]
        assert len(limited.rows) == 50
        assert all(one.rows[one.indices.index(i)] == row for i, row in zip(limited.indices, limited.rows, strict=True))

    def test_all_that_there_are_can_be_a_sample(self) -> None:
        assert made("instructions", questions=100) == made("instructions")

    def test_numbers_and_operations_are_drawn_alike(self) -> None:
        """Each count within five standard deviations of what equal chances give."""
        n, operations = 4000, Counter[tuple[int, str]]()
        numbers = Counter[tuple[int, int]]()
        for row in made("instructions", terms=4, operations="+-*", largest=999, questions=n):
            words = asked(row["instruction"]).split()
            operations.update(enumerate(words[1::2]))
            numbers.update((place, int(word) // 250) for place, word in enumerate(words[::2]))
        for counts, kinds in ((operations, 3), (numbers, 4)):
            assert len(counts) == kinds * len({place for place, _ in counts})
            spread = math.sqrt(n / kinds * (1 - 1 / kinds))
            assert max(abs(count - n / kinds) for count in counts.values()) < 5 * spread


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"terms": 1}, r"task\.data\.source\.terms=1: must be at least 2"),
        ({"operations": ""}, r"task\.data\.source\.operations='': must be some of"),
        ({"operations": "+/"}, r"operations='\+/'"),
        ({"operations": "++"}, r"operations='\+\+'"),
        ({"largest": 0}, r"task\.data\.source\.largest=0"),
        ({"largest": 999}, r"task\.data\.source\.questions=None: stands for all 1,000,000 questions.*such as 20000"),
        ({"questions": 101}, r"task\.data\.source\.questions=101: is more than the 100 questions"),
        ({"questions": 24}, r"task\.data\.source\.held_out=12: must be .* below half of the 24 questions"),
        ({"questions": -1}, r"held_out"),
        ({"held_out": 0}, r"held_out=0"),
    ],
)
def test_impossible_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Arithmetic("instructions", **settings)
