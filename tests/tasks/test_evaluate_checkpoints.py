"""Checkpoints against what their own run measured, and what happens to those that cannot be read."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import Workplace
from made_models import NAMES, make_mirror, make_pairs
from records import read_page

from modern_llm.data.minimal_pairs import BLIMP, read_pairs
from modern_llm.data.text.sources import TextFiles
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.loading import load_model
from modern_llm.pretrained.settings import LoRA, ModelFromRun, PretrainedModel
from modern_llm.reporting.record import read_rows
from modern_llm.tasks.evaluate_checkpoints import EvaluateCheckpoints
from modern_llm.training.runtime import Runtime
from modern_llm.training.settings import Hardware

CPU = Hardware(device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A run with three checkpoints; beside it, a torn one, one of a classifier and one that was never finished."""
    place = Workplace(tmp_path_factory.mktemp("place"))
    place.run("trainer.max_steps=6", "trainer.eval_every=2", "trainer.keep_checkpoints=9")
    steps = place.only_run() / "checkpoints"
    torn = steps.parent.parent / "other" / "checkpoints" / "step_00000002"
    torn.mkdir(parents=True)
    for file in (steps / "step_00000002").glob("*.*"):
        torn.joinpath(file.name).write_bytes(file.read_bytes()[:-5])
    (torn.parent / "step_00000004.part").mkdir()
    return place


def task(place: Workplace, path: Path | None = None, **settings: object) -> EvaluateCheckpoints:
    text = TextFiles(train=[str(place.folder / "text.txt")])
    paths = Paths(str(place.outputs), str(place.folder / "cache"), settings.pop("mirror", None))  # type: ignore
    return EvaluateCheckpoints(str(path or place.outputs), CPU, paths, text, **settings)  # type: ignore[arg-type]


def test_every_checkpoint_is_a_row_and_the_evaluated_one_has_the_run_s_own_loss(
    place: Workplace, tmp_path: Path
) -> None:
    metrics = task(place).run(RunFolder(tmp_path, {}))
    with (tmp_path / "checkpoints.csv").open() as file:
        rows = {(row["run"].split("/")[-1], row["checkpoint"]): row for row in csv.DictReader(file)}
    run = place.only_run()
    result = json.loads((run / "result.json").read_text())
    own = rows[run.name, Path(result["evaluated_checkpoint"]).name]
    assert float(own["loss"]) == pytest.approx(result["metrics"]["validation_loss"], rel=1e-6)
    assert float(own["word_perplexity"]) == pytest.approx(result["metrics"]["validation_word_perplexity"], rel=1e-6)
    assert [rows[run.name, f"step_0000000{n}"]["step"] for n in (2, 4, 6)] == ["2", "4", "6"]
    tokens = [float(rows[run.name, f"step_0000000{n}"]["tokens"]) for n in (2, 4, 6)]
    assert tokens == [2 * 2 * 32, 4 * 2 * 32, 6 * 2 * 32]  # steps x sequences x length
    assert float(own["flops"]) / float(own["tokens"]) > 6 * 32 * 257  # six per weight of the head alone
    assert rows["other", "step_00000002"]["status"].startswith("CheckpointError: torn: ")
    assert "manifest.json" in rows["other", "step_00000004.part"]["status"]
    assert metrics["checkpoints"] == 5
    assert metrics["unreadable"] == 2
    assert (tmp_path / "checkpoints.png").stat().st_size > 5000
    page = read_page(tmp_path / "report.html")
    assert len(page.table("runs")) == 5
    assert "torn: " in page.text


def test_checkpoints_are_judged_on_minimal_pairs(place: Workplace, tmp_path: Path) -> None:
    """A row has what its own weights give; rows that an earlier run left without it are measured again."""
    make_pairs(tmp_path / "mirror")
    mirror, out = str(tmp_path / "mirror"), tmp_path / "out"
    out.mkdir()
    task(place, place.only_run(), max_tokens=64).run(RunFolder(out, {}))
    metrics = task(place, place.only_run(), mirror=mirror, max_tokens=64, blimp_pairs=3).run(RunFolder(out, {}))
    with (out / "checkpoints.csv").open() as file:
        rows = list(csv.DictReader(file))
    pairs = read_pairs(BLIMP, mirror, limit=3)
    assert len(pairs) == 6
    for row in rows:
        checkpoint = ModelFromRun(str(place.only_run() / "checkpoints" / row["checkpoint"]))
        loaded = load_model(checkpoint, Runtime(CPU), None, [], train=False)
        texts = [[0, *loaded.tokenizer.encode(f" {text}")] for pair in pairs for text in (pair.good, pair.bad)]
        nats = [-loaded.decoder.eval()(torch.tensor([t[:-1]]), labels=torch.tensor([t[1:]])).loss.item() * (len(t) - 1)
                for t in texts]  # fmt: skip
        right = [good > bad for good, bad in zip(nats[::2], nats[1::2], strict=True)]
        assert float(row["blimp_accuracy"]) == pytest.approx(sum(right) / 6)
    assert metrics["best_blimp_accuracy"] == max(float(row["blimp_accuracy"]) for row in rows)
    assert (out / "checkpoints.png").stat().st_size > 5000


def test_what_is_measured_is_not_measured_again(place: Workplace, tmp_path: Path) -> None:
    """A row that is there already stands, whatever has become of its checkpoint; the others are added."""
    whole = task(place, max_tokens=64)
    whole.run(RunFolder(tmp_path, {}))
    lines = (tmp_path / "checkpoints.jsonl").read_text().splitlines()
    invented = {**json.loads(lines[0]), "loss": 123.0}
    (tmp_path / "checkpoints.jsonl").write_text(json.dumps(invented) + "\n")
    whole.run(RunFolder(tmp_path, {}))
    again = [json.loads(line) for line in (tmp_path / "checkpoints.jsonl").read_text().splitlines()]
    assert again[0]["loss"] == 123.0
    assert again[1:] == [json.loads(line) for line in lines[1:]]


def test_what_failed_or_was_torn_is_tried_again_and_nothing_measured_is_a_failure(
    place: Workplace, tmp_path: Path
) -> None:
    whole = task(place, max_tokens=64)
    whole.run(RunFolder(tmp_path, {}))
    lines = (tmp_path / "checkpoints.jsonl").read_text().splitlines()
    failed = {**json.loads(lines[0]), "status": "OSError: of that day"}
    (tmp_path / "checkpoints.jsonl").write_text(f"{json.dumps(failed)}\n{lines[1][:40]}")
    assert whole.run(RunFolder(tmp_path, {}))["unreadable"] == 2
    told = [row["status"] for row in read_rows(tmp_path / "checkpoints.jsonl", [])]
    assert told.count("measured") == 3
    (tmp_path / "none").mkdir()
    other = next(place.outputs.glob("*/other"))
    with pytest.raises(ValueError, match=r"none of 2 checkpoints could be measured\. The first: CheckpointError: torn"):
        task(place, other).run(RunFolder(tmp_path / "none", {}))
    assert not (tmp_path / "none" / "result.json").exists()
    with pytest.raises(ValueError, match=r"model\.path=.*: the checkpoint step_00000002 is damaged"):
        load_model(ModelFromRun(str(other / "checkpoints" / "step_00000002")), Runtime(CPU), None, [], train=False)


def test_a_finetuned_hugging_face_model_is_measured(place: Workplace, tmp_path: Path) -> None:
    from modern_llm.experiment.loading import describe_model, require_same_base
    from modern_llm.training.checkpoint import Checkpoints, model_tensors

    mirror = str(make_mirror(tmp_path / "mirror"))
    choice = PretrainedModel(NAMES["gpt2"], LoRA())
    loaded = load_model(choice, Runtime(CPU), mirror, [], train=True)
    torch.manual_seed(1)
    for name, parameter in loaded.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)

    def extras(checkpoint: Path) -> None:
        checkpoint.joinpath("config.yaml").write_text(describe_model(choice, loaded))
        loaded.tokenizer.save(checkpoint / "tokenizer")

    Checkpoints(tmp_path / "run" / "checkpoints", 1).save(
        3, model_tensors(loaded.model), {"progress": {"tokens": 7}}, extras
    )
    require_same_base(tmp_path / "run", loaded)
    with pytest.raises(ValueError, match=r"resume=.*: was trained on another .*gpt2 than the one that is found now"):
        require_same_base(tmp_path / "run", replace(loaded, fingerprint="of other weights"))
    (tmp_path / "out").mkdir()
    measure = task(place, tmp_path / "run", mirror=mirror, max_tokens=50, context=50)
    metrics = measure.run(RunFolder(tmp_path / "out", {}))
    text = "".join(measure.data.documents("validation", None))
    ids = torch.tensor([[loaded.tokenizer.eos_id, *loaded.tokenizer.encode(text)[:50]]])
    logits = loaded.adapter.eval()(input_ids=ids[:, :-1]).logits  # type: ignore[union-attr]
    expected = torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]).item()
    assert metrics["best_loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["best_token_perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)


def test_a_folder_without_checkpoints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.path=.*holds no checkpoint"):
        EvaluateCheckpoints(str(tmp_path), CPU)
