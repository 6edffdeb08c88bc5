"""Choosing among many answers, against hand-worked cases and brute force."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from math import comb

import numpy as np
import pytest

from modern_llm.evaluation import reranking
from modern_llm.evaluation.reranking import Combine, curve_points, pass_at_k, reference_number, rerank, vote
from modern_llm.evaluation.rollouts import Attempts
from modern_llm.models.decoding.generation import Continuation


def attempts(greedy: str, *samples: str) -> Attempts:
    return Attempts(Continuation(greedy, True), [Continuation(text, True) for text in samples])


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["3", "4", "4"], "4"),
        (["3", "4", "4", "3"], "3"),  # a tie: sampled first
        (["3", "4", "4.0", "5"], "4"),  # one number, written in two ways
        ([None, None, "7"], "7"),  # silence has no vote
        (["1234.50", "1234.5"], "1234.50"),
        ([None, None], None),
    ],
)
def test_a_majority_by_hand(answers: list[str | None], winner: str | None) -> None:
    assert vote(answers) == winner


@pytest.mark.parametrize(
    ("weights", "combine", "winner"),
    [
        ([0.9, 0.5, 0.5], "sum", "4"),
        ([0.9, 0.5, 0.5], "largest", "3"),
        ([0.5, 0.2, 0.3], "sum", "3"),  # 0.5 against 0.2 + 0.3: equal, and sampled first
        ([0.1, 0.1, 0.1], "largest", "3"),
        ([0.0, 0.0, 0.0], "sum", "3"),
    ],
)
def test_weights_by_hand(weights: list[float], combine: Combine, winner: str) -> None:
    assert vote(["3", "4", "4"], weights, combine) == winner
    assert vote([None, "3", "4", "4"], [1.0, *weights], combine) == winner  # the best sample has no number


@pytest.mark.parametrize(("n", "right", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 3), (4, 1, 4)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, right: int, k: int) -> None:
    subsets = list(combinations([True] * right + [False] * (n - right), k))
    assert pass_at_k(n, right, k) == pytest.approx(np.mean([any(s) for s in subsets]))


def by_hand(answers: list[str | None], weights: list[float], combine: Combine) -> str | None:
    """The rule in plain Python."""
    got: dict[str, float] = {}
    for answer, weight in zip(answers, weights, strict=True):
        if answer is not None:
            got[answer] = got.get(answer, 0) + weight if combine == "sum" else max(got.get(answer, -1), weight)
    best = max(got.values(), default=0)
    return next((answer for answer, total in got.items() if total >= best - 1e-9), None)


@pytest.mark.parametrize("k", [1, 2, 4, 6])
@pytest.mark.parametrize(("way", "combine"), [("majority", "sum"), ("verifier", "largest"), ("weighted", "sum")])
def test_a_figure_for_k_is_the_mean_over_all_subsets(k: int, way: str, combine: Combine) -> None:
    random = np.random.default_rng(k)
    texts = [[str(a) if a < 4 else "none" for a in random.integers(0, 6, 6)] for _ in range(12)]
    scores = random.random((12, 6)).round(1)
    result = rerank([attempts("0", *row) for row in texts], ["1"] * 12, scores=scores.tolist())
    weights = np.ones((12, 6)) if way == "majority" else scores
    expected = np.mean(
        [
            by_hand([None if row[i] == "none" else row[i] for i in s], [w[i] for i in s], combine) == "1"
            for row, w in zip(texts, weights.tolist(), strict=True)
            for s in combinations(range(6), k)
        ]
    )
    (found,) = [row["solved"] for row in result.curve if (row["way"], row["k"]) == (way, k)]
    assert found == pytest.approx(expected)


def test_with_one_sample_every_way_is_that_sample_and_with_all_the_figure() -> None:
    result = rerank(
        [attempts("#### 5", "#### 5", "so 6", "6"), attempts("7", "8", "9", "no idea")],
        ["6", "7"],
        scores=[[0.9, 0.1, 0.2], [0.5, 0.1, 0.99]],
    )
    metrics = result.metrics
    assert metrics["greedy_em"] == 0.5
    assert metrics["majority_em"] == 0.5
    assert metrics["verifier_em"] == 0.0
    assert metrics["weighted_em"] == 0.0
    assert metrics["pass_at_3"] == 0.5
    assert metrics["sample_em"] == pytest.approx(2 / 6)
    assert metrics["answered_share"] == pytest.approx(5 / 6)
    assert (metrics["majority_gain"], metrics["verifier_gain"]) == (0.0, -0.5)
    assert result.chosen["majority"] == ["6", "8"]
    assert result.chosen["verifier"] == ["5", "8"]  # the last sample scores best, and has no number
    assert result.right["greedy"] == [False, True]
    for row in result.curve:
        if row["k"] == 1:
            assert row["solved"] == pytest.approx(metrics["sample_em"])
        if row["k"] == 3:
            name = "pass_at_3" if row["way"] == "pass" else f"{row['way']}_em"
            assert row["solved"] == metrics[name]


def test_many_samples_are_averaged_over_drawn_subsets_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    rows = [attempts("1", *map(str, random.integers(0, 3, 20))) for _ in range(30)]
    first = rerank(rows, ["1"] * 30)
    assert rerank(rows, ["1"] * 30) == first
    assert comb(20, 8) > 256
    monkeypatch.setattr(reranking, "_SUBSETS", 5000)
    for one, other in zip(first.curve, rerank(rows, ["1"] * 30).curve, strict=True):
        assert one["solved"] == pytest.approx(other["solved"], abs=0.02)


def test_a_strict_reading_sees_marked_numbers_alone() -> None:
    rows = [attempts("6", "6", "6", "#### 5")]
    assert rerank(rows, ["5"], reading="strict").metrics["majority_em"] == 1
    assert rerank(rows, ["5"]).metrics["majority_em"] == 0


def test_a_gain_is_paired() -> None:
    """Two ways that always agree differ by nothing, however uncertain each is."""
    rows = [attempts(a, a, a) for a in "1212121211"]
    metrics = rerank(rows, ["1"] * 10).metrics
    assert (metrics["majority_gain_low"], metrics["majority_gain_high"]) == (0, 0)
    assert metrics["majority_em_low"] < metrics["majority_em"] < metrics["majority_em_high"]


@pytest.mark.parametrize(("n", "points"), [(1, [1]), (8, [1, 2, 4, 8]), (10, [1, 2, 4, 8, 10])])
def test_points_of_the_curve(n: int, points: list[int]) -> None:
    assert curve_points(n) == points


def test_references() -> None:
    assert reference_number("It makes 3 + 4 = 7.\n#### 7") == "7"
    assert reference_number(" $1,250 ") == "1250"
    with pytest.raises(ValueError, match="has no line '#### n'"):
        reference_number("three or four, 3 or 4")


def test_ties_go_to_the_first_as_a_counter_has_it() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        answers = list(map(str, random.integers(0, 4, 7)))
        assert vote(answers) == Counter(answers).most_common(1)[0][0]
