"""A verifier's figures against scikit-learn and closed forms, and what is fitted on which answers."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score

from modern_llm.evaluation.metrics.bootstrap import bootstrap_interval
from modern_llm.evaluation.metrics.calibration import choose_threshold, fit_calibration, reliability
from modern_llm.evaluation.metrics.library import measure
from modern_llm.evaluation.metrics.verification import Brier, CalibrationError, RocAuc, measure_verifier


def scored(n: int, seed: int, digits: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities with ties where there are few digits, and marks that they tell something of."""
    random = np.random.default_rng(seed)
    p = random.random(n).round(digits)
    return p, (random.random(n) < 0.2 + 0.5 * p).astype(int)


@pytest.mark.parametrize("digits", [0, 1, 6])
@pytest.mark.parametrize("n", [7, 300])
def test_area_and_brier_score_are_those_of_scikit_learn(n: int, digits: int) -> None:
    p, y = scored(n, n + digits, digits)
    y[0], y[1] = 0, 1
    assert RocAuc().compute(predictions=p.tolist(), references=y.tolist())["roc_auc"] == pytest.approx(
        roc_auc_score(y, p), abs=1e-12
    )
    assert Brier().compute(predictions=p.tolist(), references=y.tolist())["brier"] == pytest.approx(
        brier_score_loss(y, p), abs=1e-12
    )


def test_the_area_of_a_resample_is_that_of_its_examples() -> None:
    p, y = scored(30, 3, 1)
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), size=20)
    areas = RocAuc().statistic(np.stack([p, y], 1), counts)
    for area, drawn in zip(areas, counts, strict=True):
        assert area == pytest.approx(roc_auc_score(np.repeat(y, drawn), np.repeat(p, drawn)))


@pytest.mark.parametrize(("p", "y"), [([0.3, 0.9], [1, 1]), ([0.1, 0.1, 0.1], [0, 0, 0]), ([0.5, 0.5], [0, 1])])
def test_where_nothing_can_be_ranked_the_area_is_a_half(p: list[float], y: list[int]) -> None:
    assert RocAuc().compute(predictions=p, references=y) == {"roc_auc": 0.5}


def test_calibration_error_in_closed_form() -> None:
    # Two bins: three answers at 0.25, of which one is right; one at 0.95 that is wrong. 1.0 is in the last bin.
    error = CalibrationError(bins=2).compute(predictions=[0.25, 0.25, 0.25, 0.95], references=[1, 0, 0, 0])["ece"]
    assert error == pytest.approx(3 / 4 * abs(1 / 3 - 0.25) + 1 / 4 * 0.95)
    assert CalibrationError().compute(predictions=[1.0, 0.0], references=[1, 0]) == {"ece": 0.0}


def test_the_calibration_curve_counts_every_answer_once() -> None:
    p, y = scored(200, 5)
    curve = reliability(p, y.astype(bool))
    assert sum(row["answers"] for row in curve) == 200
    weighted = sum(row["answers"] * abs(row["mean_probability"] - row["share_right"]) for row in curve) / 200
    measured = CalibrationError().compute(predictions=p.tolist(), references=y.tolist())["ece"]
    assert weighted == pytest.approx(measured)


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [([0.5], [1, 0], "needs one probability"), ([1.5], [1], "must be probabilities"), ([0.5], [2], "0 or 1")],
)
def test_what_is_no_probability_is_refused(p: list[float], y: list[int], message: str) -> None:
    for metric in (RocAuc(), Brier(), CalibrationError()):
        with pytest.raises(ValueError, match=message):
            metric.compute(predictions=p, references=y)


class TestCalibration:
    def test_it_is_the_likeliest_one(self) -> None:
        """With many answers Platt's targets are nearly the marks, and the fit that of a logistic regression."""
        random = np.random.default_rng(0)
        z = random.normal(size=20_000) * 3
        correct = random.random(20_000) < 1 / (1 + np.exp(-(0.4 * z - 0.7)))
        fitted = fit_calibration(z, correct)
        theirs = LogisticRegression(C=1e9).fit(z[:, None], correct)
        assert fitted.slope == pytest.approx(float(theirs.coef_[0, 0]), rel=0.01)
        assert fitted.offset == pytest.approx(float(theirs.intercept_[0]), rel=0.01)

    def test_answers_that_one_threshold_separates_stay_finite(self) -> None:
        fitted = fit_calibration(np.array([-9.0, -8.0, 7.0, 9.0]), np.array([False, False, True, True]))
        assert 0 < fitted.slope < 1
        assert 0.6 < float(fitted(np.array([9.0]))[0]) < 0.95

    def test_scores_that_tell_nothing_keep_their_order_near_the_base_rate(self) -> None:
        z = np.linspace(-4, 4, 100)
        p = fit_calibration(z, z < -2)(z)  # the worst are right
        assert (np.diff(p) > 0).all()
        assert np.abs(p - 0.25).max() < 0.02


class TestThreshold:
    def test_it_is_the_best_one_on_the_answers_given(self) -> None:
        p, y = scored(60, 8, 2)
        correct = y.astype(bool)
        chosen = choose_threshold(p, correct)
        every = [((p >= t) == correct).mean() for t in np.linspace(-0.01, 1.01, 2041)]
        # Beyond all answers are no candidates: there, everything would count as right or wrong, without looking.
        inside = [((p >= t) == correct).mean() for t in np.linspace(p.min() + 1e-6, p.max() - 1e-6, 2041)]
        assert max(inside) <= ((p >= chosen) == correct).mean() <= max(every)

    def test_of_equally_good_ones_the_nearest_to_a_half(self) -> None:
        assert choose_threshold(np.array([0.1, 0.9]), np.array([False, True])) == 0.5
        assert choose_threshold(np.array([0.6, 0.8, 0.9]), np.array([False, False, True])) == pytest.approx(0.85)


class TestProblems:
    def test_picked_accuracy_by_hand(self) -> None:
        p = np.array([0.9, 0.2, 0.3, 0.7, 0.5, 0.5])
        correct = np.array([True, False, True, False, True, False])
        metrics = measure_verifier(p, correct, ["a", "a", "b", "b", "c", "c"], 0.5, seed=0)
        assert metrics["picked_accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)  # a tie counts its mean
        assert metrics["pickable"] == 1
        assert metrics["base_rate"] == 0.5
        assert metrics["accuracy"] == pytest.approx(3 / 6)

    def test_whole_problems_are_drawn(self) -> None:
        """Four copies of each answer say as much as one: the interval is that of the single answers."""
        random = np.random.default_rng(1)
        single = (random.random(80) < 0.4).astype(float)
        copied, groups = np.repeat(single, 4), np.repeat(np.arange(80), 4)
        low, high = bootstrap_interval(single, seed=0, resamples=4000)
        low4, high4 = bootstrap_interval(copied, seed=0, resamples=4000, groups=groups)
        assert (low4, high4) == pytest.approx((low, high), abs=0.015)
        naive = bootstrap_interval(copied, seed=0)
        assert naive[1] - naive[0] < 0.7 * (high4 - low4)

    def test_an_interval_holds_its_figure(self) -> None:
        p, y = scored(200, 9)
        measured = measure(RocAuc(), p.tolist(), y.tolist(), seed=0, groups=np.arange(200) // 4)
        assert measured["roc_auc_low"] < measured["roc_auc"] < measured["roc_auc_high"]
