"""BLiMP on a made data set of its layout, against transformers alone, and over the checkpoints of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made_models import PARADIGMS, byte_tokenizer, make_pairs
from records import read_page

from modern_llm.data.minimal_pairs import published_accuracies, read_pairs
from modern_llm.data.text.tokenizers import Tokenizer
from modern_llm.evaluation.blimp import by_level, outcomes
from modern_llm.evaluation.error_analysis import wilson
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import PretrainedModel
from modern_llm.tasks.blimp import Blimp
from modern_llm.training.settings import Hardware

CPU = Hardware(device="cpu", precision="fp32", eval_batch_size=3)
PUBLISHED = [
    {"UID": "adjunct_island", "linguistics_term": "island_effects", "lstm": 0.5, "gpt2": 0.9},
    {"UID": "overall", "linguistics_term": "overall", "lstm": 0.6, "gpt2": 0.8},
]


@pytest.fixture
def pairs_mirror(hub: Path, tmp_path: Path) -> Path:
    """The models of the made mirror, and BLiMP's layout with two paradigms of six pairs each."""
    root = tmp_path / "mirror"
    root.mkdir()
    (root / "models").symlink_to(hub / "models")
    data = make_pairs(root)
    (data / "published.jsonl").write_text("".join(json.dumps(row) + "\n" for row in PUBLISHED))
    return root


def run(mirror: Path, folder: Path, model: str, **settings: Any) -> tuple[dict[str, float], Any]:
    folder.mkdir()
    (folder / "config.yaml").write_text("{}")
    metrics = Blimp(PretrainedModel(model), CPU, Paths(mirror=str(mirror)), **settings).run(RunFolder(folder, {}))
    return metrics, json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("name", ["made/llama", "openai-community/gpt2"])
def test_every_sentence_as_transformers_has_it(pairs_mirror: Path, tmp_path: Path, name: str) -> None:
    metrics, result = run(pairs_mirror, tmp_path / "run", name)
    loaded = load_hugging_face(PretrainedModel(name), str(pairs_mirror))
    judged = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    right = []
    for row in judged:
        nats = []
        for key in ("good", "bad"):
            ids = [loaded.tokenizer.eos_id, *loaded.tokenizer.encode(" " + row[key])]  # it names no bos
            logits = loaded.base.eval()(torch.tensor([ids])).logits[0].log_softmax(-1)
            nats.append(logits[range(len(ids) - 1), ids[1:]].sum().item())
            assert row[f"{key}_nats"] == pytest.approx(nats[-1], abs=2e-4)
        right.append(0.5 if row["good"] == row["bad"] else float(nats[0] > nats[1]))
    assert [row["score"] for row in judged] == right
    assert metrics["accuracy"] == pytest.approx(sum(right) / 12)
    assert (metrics["accuracy_low"], metrics["accuracy_high"]) == pytest.approx(wilson(sum(right), 12))
    assert metrics["ties"] == 2
    tables = result["tables"]
    assert {row["paradigm"]: row["accuracy"] for row in tables["By paradigm"]} == {
        name: pytest.approx(sum(right[i * 6 : i * 6 + 6]) / 6) for i, (name, _, _) in enumerate(PARADIGMS)
    }
    assert [row["term"] for row in tables["By term"]] == ["island_effects", "argument_structure"]  # as in the paper
    assert metrics["syntax_semantics_accuracy"] == tables["By paradigm"][1]["accuracy"]
    assert tables["By paradigm"][0]["gpt2 (published)"] == 0.9
    assert "gpt2 (published)" not in tables["By paradigm"][1]
    assert [row["accuracy"] for row in tables["Beside other models"][1:]] == [0.6, 0.8]
    page = read_page(tmp_path / "run" / "report.html")
    assert "By paradigm" in page.text
    assert "animate_subject_trans" in page.text


def test_a_part_and_what_is_refused(pairs_mirror: Path, tmp_path: Path) -> None:
    metrics, _ = run(pairs_mirror, tmp_path / "a", "made/llama", paradigms=["adjunct_island"], max_pairs=4)
    assert metrics["pairs"] == 4
    with pytest.raises(ValueError, match=r"task\.paradigms='causative'.*Choose among adjunct_island"):
        read_pairs("nyu-mll/blimp", str(pairs_mirror), ["causative"])
    with pytest.raises(ValueError, match=r"task\.max_pairs=0: must be at least 1"):
        Blimp(PretrainedModel("made/llama"), CPU, max_pairs=0)
    with pytest.raises(ValueError, match="is an encoder-decoder, and continues no text"):
        run(pairs_mirror, tmp_path / "b", "google-t5/t5-small")
    assert published_accuracies("made/other", str(pairs_mirror)) == {}


def test_what_stands_in_front_of_a_sentence() -> None:
    backend = byte_tokenizer().backend
    assert Tokenizer(backend, eos_id=0).prefix_id == 0
    assert Tokenizer(backend, eos_id=0, bos_id=5).prefix_id == 5
    for named in ("a", {"content": "a"}):  # a tokenizer may name a bos and begin no text with it
        assert Tokenizer(backend, 0, None, {"bos_token": named}).prefix_id == backend.token_to_id("a") != 0


def test_real_pairs_are_read_and_stand_beside_what_was_published(mirror: Path) -> None:
    if not (mirror / "datasets" / "nyu-mll" / "blimp").is_dir():
        pytest.skip("the mirror has no BLiMP")
    pairs, published = (
        read_pairs("nyu-mll/blimp", str(mirror), limit=1),
        published_accuracies("nyu-mll/blimp", str(mirror)),
    )
    assert len(pairs) == 67
    assert len({pair.term for pair in pairs}) == 12
    assert len({pair.field for pair in pairs}) == 4
    right = outcomes(torch.zeros(67, 2).numpy())
    for level in ("term", "paradigm"):
        assert all("gpt2 (published)" in row for row in by_level(pairs, right, level, published))
    assert published["overall"]["gpt2"] == pytest.approx(0.830, abs=1e-3)
