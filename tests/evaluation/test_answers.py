"""GSM8K answers: cases worked by hand, the data's own references, and published solutions with published marks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from modern_llm.evaluation.metrics.numbers import (
    failure_kind,
    flexible_answer,
    reference_answer,
    same_number,
    strict_answer,
)
from modern_llm.hub import find_dataset

LAST_NUMBERS = {
    # thousands, and lists that are none
    "a total of 1,234": "1234",
    "1,234.00 dollars": "1234.00",
    "12,345,678.5": "12345678.5",
    "109,200,000 cells": "109200000",
    r"\boxed{$9{,}500}": "9500",
    "1, 2, 3": "3",
    "1,2,3": "3",
    "1,23": "23",
    "1,2345": "2345",
    "1,234,5": "5",
    "0,123": "123",
    "1234,567": "567",
    "1234,567,890": "890",
    "1.5,200": "200",
    "72 clips, altogether": "72",
    # signs
    "it is -5": "-5",
    "it is −5": "-5",
    "it is +5": "5",
    "x=-5": "-5",
    "(-5)": "-5",
    "2*-3": "-3",
    "5 - -3": "-3",
    "3-4": "4",
    "3 - 4": "4",
    "3–4": "4",
    "3−4": "4",
    "from $3-$4": "4",
    "3€-4€": "4",
    "10%-20%": "20",
    "(3)-4": "4",
    "x-5": "5",
    "on pages 3--4": "4",
    "- 5 apples": "5",
    "-$1,250.75": "-1250.75",
    "$-5": "-5",
    r"-\$5": "-5",
    "-€ 5": "-5",
    # decimals and full stops
    "it costs 3.50": "3.50",
    "The answer is 42.": "42",
    "The answer is 42.\n": "42",
    "It is 4.5.": "4.5",
    "$.50": ".50",
    "-.5": "-.5",
    "item No.5": "5",
    "Well...5": "5",
    "v3.5.2": "2",
    # currency, percent, units, markup
    "$18": "18",
    "18€": "18",
    "20%": "20",
    "20 %": "20",
    "5kg": "5",
    "the 3rd": "3",
    "**42**": "42",
    "**-42**": "-42",
    r"\boxed{42}": "42",
    r"\boxed{-42}": "-42",
    "$18$": "18",
    "16 - 3 = <<16-3=13>>13": "13",
    # nothing is worked out
    "1/2": "2",
    r"\frac{1}{2}": "2",
    "1e5": "5",
    "3:30": "30",
    # more than one answer
    "The answer is 5.\n#### 5\n\nThe answer is 7": "7",
    "#### 5\nNow check 3 times": "3",
    "A: 5\n\nQuestion: What is 6+7?\nAnswer: 13": "5",
    "5\nQ: 6?\nA: 7": "5",
    "5\r\n  Question: 6": "5",
    "Question: 6+7?\nAnswer: 13": "13",
    "\nQuestion: 6+7?\nAnswer: 13": "13",
    "5. A question: 6": "6",
}


@pytest.mark.parametrize(("text", "expected"), LAST_NUMBERS.items())
def test_the_last_number(text: str, expected: str) -> None:
    assert flexible_answer(text) == expected


@pytest.mark.parametrize("text", ["", " \n", "forty-two", "$", "-", ",", "...", "####", "**", "\nQuestion: none"])
def test_a_text_without_a_number(text: str) -> None:
    assert flexible_answer(text) is None
    assert strict_answer(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so 72.\n#### 72", "72"),
        ("####72", "72"),
        ("####   \t72", "72"),
        ("#### 1,234", "1234"),
        ("#### $1,234.50", "1234.50"),
        ("#### -47", "-47"),
        ("#### −47", "-47"),
        ("#### -$5", "-5"),
        ("#### +5", "5"),
        ("#### .5", ".5"),
        ("#### **42**", "42"),
        ("**#### 42**", "42"),
        (r"#### \boxed{42}", "42"),
        (r"#### $\boxed{-42}$", "-42"),
        ("#### 42 eggs, not 43", "42"),
        ("#### 20%", "20"),
        ("#### 3-4", "3"),
        ("#### 1, 2, 3", "1"),
        ("#### 1,234,5", "1"),
        ("#### 5\n#### 6", "5"),
        ("#### \n#### 6", "6"),
        ("#### 5\n\nQuestion: 1+1?\n#### 2", "5"),
    ],
)
def test_the_marked_number(text: str, expected: str) -> None:
    assert strict_answer(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 42",
        "#### The answer is 42",
        "####\n42",
        "### 42",
        "##### 42",
        "# ### 42",
        "#### - 5",
        "It is five.\nQuestion: 1+1?\n#### 2",
    ],
)
def test_an_unmarked_number_is_no_strict_answer(text: str) -> None:
    assert strict_answer(text) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("3.50", "3.5"),
        ("1,234.00", "1234"),
        ("$18", "18."),
        ("-5", "−5"),
        ("+5", "5"),
        ("-0", "0"),
        ("007", "7"),
        (".5", "0.50"),
        ("20%", "20"),
        ("5kg", "5"),
        ("100000000000000000000000000000000001", "100000000000000000000000000000000001.0"),
    ],
)
def test_the_same_number(first: str, second: str) -> None:
    assert same_number(first, second)
    assert same_number(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("5", "-5"),
        ("5", "50"),
        ("0.1", "0.10000000000000000001"),
        ("100000000000000000000000000000000001", "100000000000000000000000000000000002"),
        ("1/2", "0.5"),
        ("1/2", "1"),
        ("3-4", "3"),
        ("3-4", "4"),
        ("", ""),
        ("five", "five"),
        (None, None),
        (None, "5"),
        ("", "5"),
    ],
)
def test_another_number_or_none(first: str | None, second: str | None) -> None:
    assert not same_number(first, second)
    assert not same_number(second, first)


def test_the_length_of_a_number_is_no_limit() -> None:
    digits = "7" * 20_000
    assert same_number(digits, f"{digits}.0")
    assert not same_number(digits, digits[:-1] + "8")
    grouped = "111," * 20_000
    assert flexible_answer(f"{grouped}111") == "111" * 20_001
    assert flexible_answer(f"{grouped}1") == "1"


@pytest.mark.parametrize(
    ("text", "expected"), [("2+2=<<2+2=4>>4\n#### 4", "4"), ("#### 1,575,000 ", "1575000"), ("#### -7\n", "-7")]
)
def test_a_reference(text: str, expected: str) -> None:
    assert reference_answer(text) == expected


@pytest.mark.parametrize("text", ["", "the answer is 4", "#### four", "#### 1/2", "#### 3-4", "#### 4 eggs"])
def test_a_reference_without_a_number_of_its_own_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="#### n") as refusal:
        reference_answer(text)
    assert repr(text) in str(refusal.value)


@pytest.mark.parametrize(
    ("prediction", "hit_length_limit", "kind"),
    [
        ("6 + 7 = 13\n#### 13", False, None),
        ("6 + 7 = 13\n#### 13\nQuestion: and", True, None),
        ("6 + 7 = 13", True, None),
        ("6 + 7 = 14\n#### 14", False, "wrong number"),
        ("6 + 7 = 14\n#### 14\nthen, as I", True, "wrong number"),
        ("6 + 7 = 14\n\nQuestion: What", True, "wrong number"),
        ("6 and then", True, "cut off"),
        ("first we", True, "cut off"),
        ("\n first we", True, "cut off"),
        ("first we", False, "no number"),
        ("thirteen\nQ: 6", True, "no number"),
        ("", False, "no number"),
    ],
)
def test_the_kind_of_a_failure(prediction: str, hit_length_limit: bool, kind: str | None) -> None:
    assert failure_kind(prediction, "13", hit_length_limit=hit_length_limit) == kind


def test_a_failure_is_one_of_the_extraction_that_scores() -> None:
    unmarked = "The answer is 13."
    assert failure_kind(unmarked, "13", hit_length_limit=False) is None
    assert failure_kind(unmarked, "13", hit_length_limit=False, answer=strict_answer) == "no number"
    assert failure_kind(unmarked, "13", hit_length_limit=True, answer=strict_answer) == "cut off"


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_reference_of_the_data_is_read(mirror: Path, split: str) -> None:
    """Against Python's own integers: in this data, what stands behind the last space is the answer."""
    answers = find_dataset("openai/gsm8k", "main", split, str(mirror))["answer"][:]
    assert len(answers) > 600
    for answer in answers:
        number = int(answer.rpartition(" ")[2].replace(",", ""))
        assert int(reference_answer(answer)) == int(strict_answer(answer) or "") == number
        assert int(flexible_answer(answer) or "") == number


def test_published_solutions_are_marked_as_their_authors_marked_them(mirror: Path) -> None:
    """Solutions of four published models with the marks that were published with them (Cobbe et al. 2021)."""
    test = find_dataset("openai/gsm8k", "main", "test", str(mirror))
    references = dict(zip(test["question"], test["answer"], strict=True))
    agreement: Counter[tuple[bool, bool]] = Counter()
    for split in ("train", "validation"):
        for row in find_dataset("openai/gsm8k-solutions", "main", split, str(mirror)):
            right = same_number(flexible_answer(row["answer"]), reference_answer(references[row["question"]]))
            agreement[row["correct"], right] += 1
    assert min(agreement[True, True], agreement[False, False]) > 1000
    assert agreement[True, False] == agreement[False, True] == 0
