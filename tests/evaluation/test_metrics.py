"""Metrics against scikit-learn, rouge-score and hand-worked cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score

from modern_llm.evaluation.metrics.library import Accuracy, ExactMatch, ExampleMetric, MacroF1, Rouge, measure
from modern_llm.evaluation.metrics.numbers import same_number

ROOT = Path(__file__).resolve().parents[2]
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
METRICS = [Accuracy, MacroF1, ExactMatch, Rouge]


def examples(metric: type[ExampleMetric], n: int = 40) -> tuple[list, list]:
    """Random labels over -1, 0, 1, 2, or texts of few words."""
    random = np.random.default_rng(n)
    if metric.example_type == "int64":
        return random.integers(-1, 3, n).tolist(), random.integers(0, 3, n).tolist()
    words = np.array(["the", "cat", "sat.", "dogs", "ran!", "mats"])
    texts = [" ".join(random.choice(words, random.integers(0, 7))) for _ in range(2 * n)]
    texts[0] = texts[n] = "the cat sat."
    return texts[:n], texts[n:]


def agree_with_scikit_learn(predictions: list[int], references: list[int]) -> None:
    accuracy = accuracy_score(references, predictions)
    macro_f1 = f1_score(references, predictions, average="macro", zero_division=0)
    for metric, expected in ((Accuracy(), accuracy), (MacroF1(), macro_f1)):
        computed = metric.compute(predictions=predictions, references=references)
        assert computed == {metric.name: pytest.approx(expected, abs=1e-12)}


LABELS = {
    "two classes": ([0, 1, 1, 0, 1, 0], [0, 1, 0, 0, 1, 1]),
    "one class": ([1, 1, 1], [1, 1, 1]),
    "one class, always missed": ([0, 0, 0], [1, 1, 1]),
    "one class in the references": ([0, 1, 1], [1, 1, 1]),
    "a class that is never right": ([0, 2, 1, 2], [0, 1, 1, 0]),
    "a class that is never predicted": ([0, 0, 0, 0], [0, 1, 2, 0]),
    "an unparseable prediction": ([0, -1, 1, 1], [0, 1, 1, 0]),
    "nothing parseable": ([-1, -1], [0, 1]),
    "one example, right": ([3], [3]),
    "one example, wrong": ([3], [4]),
    "far apart": ([10**12, -5, 7], [10**12, 7, 7]),
}


@pytest.mark.parametrize(("predictions", "references"), LABELS.values(), ids=LABELS)
def test_labels_score_as_in_scikit_learn(predictions: list[int], references: list[int]) -> None:
    agree_with_scikit_learn(predictions, references)


@pytest.mark.parametrize("classes", [1, 2, 3, 20])
@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_random_labels_score_as_in_scikit_learn(classes: int, n: int) -> None:
    random = np.random.default_rng(classes * 1000 + n)
    agree_with_scikit_learn(random.integers(-1, classes, n).tolist(), random.integers(0, classes, n).tolist())


@pytest.mark.parametrize("labels", [[0, 1], [1, 0], [0, 1, 9]])
def test_named_classes_are_those_of_scikit_learn(labels: list[int]) -> None:
    predictions, references = [0, -1, 1, 1, 0], [0, 1, 1, 0, 0]
    expected = f1_score(references, predictions, labels=labels, average="macro", zero_division=0)
    assert MacroF1(labels).compute(predictions=predictions, references=references) == {
        "macro_f1": pytest.approx(expected, abs=1e-12)
    }


@pytest.mark.parametrize("labels", [None, [0, 1, 2]])
def test_macro_f1_of_a_resample_is_that_of_its_examples(labels: list[int] | None) -> None:
    """Each resample written out and scored by scikit-learn; in some, classes are missing."""
    random = np.random.default_rng(0)
    pairs = np.array([(0, 0), (0, 1), (1, 1), (2, 2), (-1, 2), (1, 0)])
    counts = random.multinomial(8, np.full(len(pairs), 1 / len(pairs)), 50)
    scores = MacroF1(labels).statistic(pairs, counts)
    for row, score in zip(counts, scores, strict=True):
        predicted, actual = np.repeat(pairs, row, axis=0).T
        expected = f1_score(actual, predicted, labels=labels, average="macro", zero_division=0)
        assert score == pytest.approx(expected, abs=1e-12)
    assert len({tuple(np.unique(np.repeat(pairs, row, axis=0))) for row in counts}) > 1


def test_the_interval_of_macro_f1_is_that_of_drawing_examples() -> None:
    random = np.random.default_rng(1)
    references = random.integers(0, 3, 120)
    predictions = np.where(random.random(120) < 0.7, references, random.integers(0, 3, 120))
    drawn = [
        f1_score(references[rows], predictions[rows], average="macro", zero_division=0)
        for rows in random.integers(0, 120, (600, 120))
    ]
    measured = measure(MacroF1(), predictions, references, seed=0, resamples=10_000)
    width = measured["macro_f1_high"] - measured["macro_f1_low"]
    assert measured["macro_f1_low"] == pytest.approx(np.quantile(drawn, 0.025), abs=0.12 * width)
    assert measured["macro_f1_high"] == pytest.approx(np.quantile(drawn, 0.975), abs=0.12 * width)


def test_exact_match_by_hand() -> None:
    predictions = ["a b", " a b\n", "A b", "a  b", "", "", "x"]
    references = ["a b", "a b", "a b", "a b", "", "x", ""]
    scores = ExactMatch().per_example(predictions, references)["exact_match"]
    assert scores.tolist() == [1, 1, 0, 0, 1, 0, 0]
    assert ExactMatch().compute(predictions=predictions, references=references) == {"exact_match": 3 / 7}


def test_exact_match_of_numbers() -> None:
    metric = ExactMatch(equal=same_number)
    measured = metric.compute(predictions=["1,234.00", "$18", "5", ""], references=["1234", "18", "-5", "7"])
    assert measured == {"exact_match": 0.5}


def test_rouge_by_hand() -> None:
    """3 of 3 words and 2 of 2 pairs found, of 6 words and 5 pairs."""
    scores = Rouge().compute(predictions=["the cat sat"], references=["The cat sat on the mat."])
    assert scores == {
        "rouge1": pytest.approx(2 / 3),
        "rouge2": pytest.approx(4 / 7),
        "rougeL": pytest.approx(2 / 3),
        "rougeLsum": pytest.approx(2 / 3),
    }


def test_words_are_stemmed() -> None:
    assert Rouge().compute(predictions=["she jumped"], references=["she jumps"])["rouge2"] == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference"),
    [
        ("A dog ran. The cat sat.", "The cat sat. A dog ran."),
        ("A dog ran!  The cat sat?", "The cat sat.\nA dog ran."),
        ('"A dog ran." The cat sat.', "The cat sat (really.) A dog ran."),
    ],
)
def test_sentences_on_one_line_count_as_lines(prediction: str, reference: str) -> None:
    """Sentences in another order: rougeL sees one of two, rougeLsum both, but for a word only one text has."""
    scores = Rouge().compute(predictions=[prediction], references=[reference])
    lines = [text.replace(". ", ".\n").replace("!  ", "!\n").replace('." ', '."\n').replace(".) ", ".)\n")
             for text in (reference, prediction)]  # fmt: skip
    expected = RougeScorer(["rougeLsum"], use_stemmer=True).score(*lines)["rougeLsum"].fmeasure
    assert all("\n" in text for text in lines)
    assert scores["rougeLsum"] == pytest.approx(expected)
    assert scores["rougeLsum"] > 0.9 > 0.6 > scores["rougeL"]


def test_both_texts_are_split() -> None:
    """Each of two sentences is found in one of another order; unsplit, only the longer order would be."""
    sentences, one = "A dog ran. The cat sat.", "The cat sat, a dog ran"
    for prediction, reference in ((sentences, one), (one, sentences)):
        scores = Rouge().compute(predictions=[prediction], references=[reference])
        assert (scores["rougeL"], scores["rougeLsum"]) == (0.5, 1.0)


@pytest.mark.parametrize("number", ["costs 3.50 now", "no end", "the end.", "e.g.this"])
def test_a_point_without_white_space_ends_no_sentence(number: str) -> None:
    reference = f"now {number}"
    scores = Rouge().compute(predictions=[number], references=[reference])
    assert scores["rougeLsum"] == scores["rougeL"] > 0


def test_rouge_is_that_of_rouge_score() -> None:
    random = np.random.default_rng(0)
    words = np.array(["the", "cats", "sat", "sitting", "on a", "mat.", "Dog", "ran!", "£5", "3.50\n\n", "well-known"])
    texts = [" ".join(random.choice(words, random.integers(1, 40))) + "\nan end" for _ in range(120)]
    predictions, references = texts[:60], texts[60:]
    scores = Rouge().per_example(predictions, references)
    scorer = RougeScorer(ROUGE, use_stemmer=True)
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        expected = scorer.score(target=reference, prediction=prediction)
        assert {name: scores[name][index] for name in ROUGE} == {
            name: pytest.approx(expected[name].fmeasure) for name in ROUGE
        }


@pytest.mark.parametrize(
    ("prediction", "reference"), [("", "a cat"), ("a cat", ""), ("", ""), ("...", "..."), ("\n", "\n"), ("猫", "猫")]
)
def test_a_text_without_words_has_rouge_zero(prediction: str, reference: str) -> None:
    assert Rouge().compute(predictions=[prediction], references=[reference]) == dict.fromkeys(ROUGE, 0.0)


@pytest.mark.parametrize("metric", METRICS)
def test_figures_are_the_means_of_the_examples(metric: type[ExampleMetric]) -> None:
    predictions, references = examples(metric)
    scores = metric().per_example(predictions, references)
    computed = metric().compute(predictions=predictions, references=references)
    assert all(values.shape == (len(references),) for values in scores.values())
    assert all(type(value) is float and 0 < value < 1 for value in computed.values())
    if metric is MacroF1:
        assert scores["correct"].tolist() == [p == r for p, r in zip(predictions, references, strict=True)]
    else:
        assert computed == {name: pytest.approx(values.mean()) for name, values in scores.items()}


@pytest.mark.parametrize("metric", METRICS)
def test_measured_figures_lie_in_their_intervals(metric: type[ExampleMetric]) -> None:
    predictions, references = examples(metric, n=200)
    measured = measure(metric(), predictions, references, seed=3)
    computed = metric().compute(predictions=predictions, references=references)
    assert set(measured) == {name + bound for name in computed for bound in ("", "_low", "_high")}
    for name, value in computed.items():
        assert measured[name] == pytest.approx(value, abs=1e-12)
        assert 0 <= measured[f"{name}_low"] < value < measured[f"{name}_high"] <= 1
    assert measure(metric(), predictions, references, seed=3) == measured
    assert measure(metric(), predictions, references, seed=3, level=0.5) != measured


@pytest.mark.parametrize("metric", METRICS)
def test_batches_add_up(metric: type[ExampleMetric]) -> None:
    """Two metrics filled in turns do not mix, and each is empty after it was computed."""
    predictions, references = examples(metric)
    one, other = metric(), metric()
    one.add_batch(predictions=predictions[:9], references=references[:9])
    other.add_batch(predictions=predictions[20:], references=references[20:])
    one.add(prediction=predictions[9], reference=references[9])
    assert one.compute(predictions=predictions[10:], references=references[10:]) == pytest.approx(
        metric().compute(predictions=predictions, references=references)
    )
    tail = metric().compute(predictions=predictions[20:], references=references[20:])
    assert other.compute() == pytest.approx(tail)
    assert one.compute(predictions=predictions[20:], references=references[20:]) == pytest.approx(tail)


@pytest.mark.parametrize("metric", METRICS)
def test_what_cannot_be_scored_is_refused(metric: type[ExampleMetric]) -> None:
    predictions, references = examples(metric)
    refusing = metric()
    for call in (refusing.per_example, lambda p, r: refusing.compute(predictions=p, references=r)):
        with pytest.raises(ValueError, match="39 predictions for 40 references"):
            call(predictions[1:], references)
        with pytest.raises(ValueError, match="Give at least one"):
            call([], [])
        with pytest.raises(ValueError, match="no answer"):
            call([None, *predictions[1:]], references)
        with pytest.raises(ValueError, match="no answer"):
            call([0.5, *predictions[1:]], references)
    with pytest.raises(ValueError, match="Give at least one"):
        refusing.compute()
    # A refused batch leaves nothing behind.
    assert refusing.compute(predictions=predictions, references=references) == metric().compute(
        predictions=predictions, references=references
    )


def test_a_text_is_no_list_of_texts() -> None:
    with pytest.raises(ValueError, match="Put it in a list"):
        ExactMatch().compute(predictions="yes", references="yes")


@pytest.mark.parametrize("kind", [np.array, torch.tensor, tuple])
def test_labels_come_as_any_sequence(kind: type) -> None:
    assert Accuracy().compute(predictions=kind([1, 0, 1]), references=kind([1, 1, 1])) == {"accuracy": 2 / 3}
    with pytest.raises(ValueError, match="highest score"):
        Accuracy().compute(predictions=np.eye(3), references=kind([1, 1, 1]))


def test_measuring_leaves_the_global_random_state() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    MacroF1().compute(predictions=[1, 0], references=[1, 1])
    measure(Rouge(), ["a cat", "b"], ["a dog", "b"], seed=0)
    assert (np.random.get_state()[1] == before).all()


OFFLINE = """
import socket, sys

class NetworkError(RuntimeError):
    pass

asked = []

def refuse(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        asked.append((event, details))
        raise NetworkError(event)

sys.addaudithook(refuse)
try:
    socket.create_connection(("127.0.0.1", 9), timeout=1)
    sys.exit("the network is not switched off")
except NetworkError:
    asked.clear()

from modern_llm.evaluation.metrics.library import Accuracy, ExactMatch, MacroF1, Rouge, measure

for metric in (Accuracy(), MacroF1()):
    print(metric.compute(predictions=[1, 0], references=[1, 1]), measure(metric, [1, 0], [1, 1], seed=0))
for metric in (ExactMatch(), Rouge()):
    print(metric.compute(predictions=["a cat"], references=["a cat"]), measure(metric, ["a cat"], ["a cat"], seed=0))
sys.exit(f"asked for {asked}" if asked else 0)
"""


@pytest.mark.slow
def test_nothing_is_fetched_and_nothing_is_written(tmp_path: Path) -> None:
    home, cache, here = (tmp_path / name for name in ("home", "cache", "here"))
    for folder in (home, cache, here):
        folder.mkdir()
    hub = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    python_path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env=hub | {"HF_HOME": str(cache), "HOME": str(home), "PYTHONPATH": python_path},
        cwd=here, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'accuracy': 0.5") == 2
    assert done.stdout.count("'exact_match': 1.0") == done.stdout.count("'rougeL': 1.0") == 2
    assert [path for folder in (cache, here) for path in folder.rglob("*")] == []
    assert [path for path in home.rglob("*") if "huggingface" in str(path)] == []
