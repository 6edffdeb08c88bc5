"""One entry makes a metric known: its direction, what it scores, and who scores it."""

from __future__ import annotations

import pytest

from modern_llm.evaluation.metrics import library
from modern_llm.evaluation.metrics.registry import METRICS, choosable, direction, directions, per_token


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("validation_loss", "lower"),
        ("test_bits_per_byte", "lower"),
        ("gpt2_window_4x_loss", "lower"),
        ("evaluation_preference_accuracy", "higher"),
        ("dpo_reward_margin", "higher"),
        ("best_of_n_verifier_em", "higher"),
        ("pass_at_8", "higher"),
        ("best_of_n_pass_at_64", "higher"),
        ("uncalibrated_brier", "lower"),
        ("rougeLsum", "higher"),
        ("train_loss", None),
        ("steps", None),
        ("tokens_per_second", None),
        ("kl_estimate", None),
    ],
)
def test_the_direction_of_a_name_in_a_result(name: str, way: str | None) -> None:
    assert direction(name) == way


def test_averages_over_tokens_depend_on_the_tokenizer() -> None:
    assert [n for n in ("validation_loss", "test_token_perplexity", "bits_per_byte", "accuracy") if per_token(n)] == [
        "validation_loss",
        "test_token_perplexity",
    ]


def test_every_entry_that_scores_answers_is_scored_with_its_interval() -> None:
    answers = {
        "labels": ([0, 1, 1, 0], [0, 1, 0, 0]),
        "texts": (["a cat 3", "it is #### 4"], ["a dog #### 3", "it is #### 4"]),
    }
    for kind, (predictions, references) in answers.items():
        for name in choosable(kind):  # type: ignore[arg-type]
            (scorer,) = library.scorers([name], ["no", "yes"])
            measured = library.measure(scorer, predictions, references, seed=0, resamples=50)
            assert measured[f"{name}_low"] <= measured[name] <= measured[f"{name}_high"]
            assert 0 < measured[name] <= 1
    scored = {name for kind in answers for name in choosable(kind)}  # type: ignore[arg-type]
    assert scored == {name for name, metric in METRICS.items() if metric.scorer}


def test_a_metric_without_an_entry_is_named() -> None:
    with pytest.raises(KeyError, match="validation_wer has no entry"):
        directions(["validation_loss", "validation_wer"])
