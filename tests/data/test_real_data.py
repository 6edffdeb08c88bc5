"""The data sets that the configuration names, on the real rows of the mirror."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.data.labelled import LabelledData
from modern_llm.evaluation.metrics.numbers import reference_answer

CONFIG = Path(__file__).resolve().parents[2] / "conf"


def dataset(name: str) -> LabelledData:
    with initialize_config_dir(str(CONFIG), version_base="1.3"):
        return build(compose("config", overrides=["task=prompting", f"task/data={name}"]).task.data)


@pytest.mark.parametrize("name", ["sst2", "samsum", "dialogsum", "gsm8k"])
def test_every_part_reads(mirror: Path, name: str) -> None:
    data = dataset(name)
    train = data.examples("train", str(mirror), limit=50)
    selection = data.examples("selection", str(mirror))
    evaluation = data.examples("evaluation", str(mirror), limit=50)
    assert len(train.rows) == len(evaluation.rows) == 50
    assert len(selection.rows) == data.source.held_out
    assert not {e.index for e in train.rows} & {e.index for e in selection.rows}
    for example in (*train.rows, *evaluation.rows):
        assert data.prompt_of(example)
        assert "{" not in data.prompt.format(**dict.fromkeys(data.columns, "x"))
        assert example.target
        if data.labels:
            assert example.target == data.labels[example.label or 0]
        if "strict_match" in data.metrics:
            assert "<<" not in example.target
            assert reference_answer(example.target)


def test_sst2_labels_are_the_right_way_round(mirror: Path) -> None:
    data = dataset("sst2")
    words = {"negative": ("worst", "awful", "bad"), "positive": ("masterpiece", "wonderful", "delightful")}
    rows = data.examples("train", str(mirror)).rows
    for label, typical in words.items():
        hits = [e.target == label for e in rows if any(w in e.fields["sentence"].split() for w in typical)]
        assert sum(hits) > 0.75 * len(hits) > 30
