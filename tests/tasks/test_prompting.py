"""Prompting: from rows to metrics, with shots, calibration and conversations."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made import labelled

from modern_llm.data.labelled import LabelledData
from modern_llm.data.rows import FileRows
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import PretrainedModel
from modern_llm.tasks.prompting import Prompting
from modern_llm.training.settings import Hardware

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=5)
SST2 = labelled(
    name="stanfordnlp/sst2", prompt="{sentence}. It is", encoder_text="sst2: {sentence}",
    labels=["bad", "good"], evaluation_split="validation", held_out=8,
)  # fmt: skip
GSM8K = labelled(
    name="openai/gsm8k", config="main", prompt="Question: {question}\nAnswer:", target="{answer}",
    remove="<<[^>]*>>", stop=["\nQuestion:"], max_new_tokens=8, held_out=4,
)  # fmt: skip


def ask(hub: Path, folder: Path, name: str, data: LabelledData, **settings: Any) -> tuple[dict[str, float], Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    task = Prompting(PretrainedModel(name), HARDWARE, data, Paths(mirror=str(hub)), **settings)
    metrics = task.run(RunFolder(folder, {}))
    return metrics, json.loads((folder / "result.json").read_text())


def by_hand(hub: Path, prompts: list[str], answers: list[str], name: str = "made/llama") -> np.ndarray:
    """Log-likelihoods by transformers alone, one forward pass for each prompt and answer."""
    loaded = load_hugging_face(PretrainedModel(name), str(hub))
    loaded.model.eval()
    rows = []
    for prompt in prompts:
        start = loaded.tokenizer.encode(prompt)
        row = []
        for answer in answers:
            ids = loaded.tokenizer.encode(answer)
            logits = loaded.base(torch.tensor([start + ids])).logits[0, len(start) - 1 : -1].log_softmax(-1)
            row.append(logits[range(len(ids)), ids].sum().item())
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize("num_shots", [0, 3])
@pytest.mark.parametrize("calibrate", [False, True])
def test_labels_are_ranked_as_by_hand(hub: Path, tmp_path: Path, num_shots: int, calibrate: bool) -> None:
    ask(hub, tmp_path, "made/llama", SST2, num_shots=num_shots, calibrate=calibrate)
    notes = json.loads((tmp_path / "result.json").read_text())["protocol"]
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    train = {e.index: e for e in SST2.examples("train", str(hub)).rows}
    shots = "".join(f"{SST2.prompt_of(train[i])} {train[i].target}\n\n" for i in notes["shot_rows"])
    assert len(notes["shot_rows"]) == num_shots
    words = [" bad", " good"]
    scores = by_hand(hub, [shots + row["input"] for row in rows], words)
    if calibrate:  # divide by the mean probability behind inputs without content
        empty = np.exp(by_hand(hub, [shots + SST2.prompt.format(sentence=s) for s in SST2.content_free], words))
        scores -= np.log((empty / empty.sum(1, keepdims=True)).mean(0))
    assert [SST2.labels[i] for i in scores.argmax(1)] == [row["prediction"] for row in rows]
    chance = np.exp(scores - np.logaddexp.reduce(scores, 1, keepdims=True)).max(1)
    shown = [float(row["detail"].split("= ")[1]) for row in rows]
    assert shown == pytest.approx(chance, abs=2e-3)


def quiz(folder: Path, form: str) -> LabelledData:
    """Questions with three or four answers of their own, in the form of HellaSwag or of ARC, or with the text."""
    rows = []
    for i in range(24):
        texts = [f"{'very ' * (k * i % 3)}{word}" for k, word in enumerate(("tea", "cake", "ink", "a sea"))][
            : 3 + i % 2
        ]
        letters, right = list("ABCD")[: len(texts)], i * 5 % len(texts)
        choices = {"text": texts, "label": letters} if form == "arc" else texts
        answer = {"arc": letters[right], "hellaswag": str(right), "text": texts[right]}[form]
        rows.append({"ask": f"Question {i}?", "options": choices, "right": answer})
    (folder / f"{form}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = FileRows(str(folder / f"{form}.jsonl"), evaluation=None, held_out=6)
    metrics = ["accuracy", "normalised_accuracy"]
    return labelled(source=files, prompt="{ask}", choices_column="options", label_column="right", metrics=metrics)


@pytest.mark.parametrize("form", ["arc", "hellaswag", "text"])
@pytest.mark.parametrize("num_shots", [0, 2])
def test_choices_of_each_row_are_ranked_as_by_hand(hub: Path, tmp_path: Path, form: str, num_shots: int) -> None:
    data = quiz(tmp_path, form)
    metrics, result = ask(hub, tmp_path / "run", "made/llama", data, num_shots=num_shots)
    rows = data.examples("evaluation", None).rows
    train = {e.index: e for e in data.examples("train", None).rows}
    shots = "".join(f"{data.prompt_of(train[i])} {train[i].target}\n\n" for i in result["protocol"]["shot_rows"])
    plain, by_length = [], []
    for row in rows:
        (scores,) = by_hand(hub, [shots + data.prompt_of(row)], [f" {choice}" for choice in row.choices])
        plain.append(scores.argmax())
        by_length.append((scores / [len(choice) for choice in row.choices]).argmax())
    right = np.array([row.label for row in rows])
    assert {len(row.choices) for row in rows} == {3, 4}
    assert metrics["accuracy"] == pytest.approx((np.array(plain) == right).mean())
    assert metrics["normalised_accuracy"] == pytest.approx((np.array(by_length) == right).mean())
    judged = [json.loads(line) for line in (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in judged] == [row.choices[i] for row, i in zip(rows, plain, strict=True)]
    assert [row["reference"] for row in judged] == [row.target for row in rows]


def test_choices_in_a_template_and_what_is_refused(tmp_path: Path) -> None:
    data = quiz(tmp_path, "arc")
    shown = replace(data, prompt="{ask}\n{options}\nAnswer:")
    example = shown.examples("evaluation", None).rows[0]
    assert shown.prompt_of(example).splitlines()[1] == f"A. {example.choices[0]}"
    with pytest.raises(ValueError, match=r"row 0: ask='Question 0.' is no list of two texts or more"):
        replace(data, choices_column="ask").examples("train", None)
    with pytest.raises(
        ValueError, match=r"ask='Question \d+\?' is none of the choices A, B, C.*task\.data\.label_column"
    ):
        replace(data, label_column="ask").examples("train", None)
    with pytest.raises(ValueError, match=r"task\.data\.choices_column='options': says that rows have answers of"):
        replace(data, labels=["a", "b"])
    with pytest.raises(ValueError, match=r"task\.data\.metrics='macro_f1': is no metric of answers that are choices"):
        Prompting(PretrainedModel("made/llama"), HARDWARE, replace(data, metrics=["macro_f1"]))


def test_generated_answers_and_their_record(hub: Path, tmp_path: Path) -> None:
    metrics, result = ask(hub, tmp_path, "openai-community/gpt2", GSM8K, num_shots=2)
    assert {"strict_match", "flexible_match", "cut_off_share"} <= metrics.keys()
    assert result["protocol"]["first_prompt"].count("Question:") == 3
    assert "<<" not in result["protocol"]["first_prompt"]
    assert result["protocol"]["shots_kept"] == {"2": 8}


@pytest.mark.parametrize("name", ["google-t5/t5-small", "google/flan-t5-small"])
def test_t5_is_asked_through_its_encoder(hub: Path, tmp_path: Path, name: str) -> None:
    _, result = ask(hub, tmp_path, name, SST2, num_shots=2)
    assert result["protocol"]["first_prompt"].count("sst2: ") == 3


def test_prompts_that_are_too_long_lose_shots_and_are_counted(
    hub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, result = ask(hub, tmp_path, "made/llama", SST2, num_shots=4, max_tokens=100)
    kept = {int(n): count for n, count in result["protocol"]["shots_kept"].items()}
    assert sum(kept.values()) == 16
    assert max(kept) < 4
    assert "have fewer than 4 shots" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no question fits into 12 tokens"):
        ask(hub, tmp_path / "b", "made/llama", SST2, max_tokens=12)


def test_a_conversation_goes_through_the_template(hub: Path, tmp_path: Path) -> None:
    _, result = ask(hub, tmp_path, "made/llama", SST2, num_shots=1, chat=True)
    assert result["protocol"]["first_prompt"].count("<|assistant|>") == 2
    with pytest.raises(ValueError, match="no chat template"):
        ask(hub, tmp_path / "b", "openai-community/gpt2", SST2, chat=True)
    with pytest.raises(ValueError, match="reads no conversation"):
        ask(hub, tmp_path / "c", "google-t5/t5-small", SST2, chat=True)


def test_impossible_settings(hub: Path) -> None:
    model = PretrainedModel("made/llama")
    with pytest.raises(ValueError, match="needs data with labels"):
        Prompting(model, HARDWARE, GSM8K, calibrate=True)
    with pytest.raises(ValueError, match="content_free"):
        Prompting(model, HARDWARE, replace(SST2, content_free=[]), calibrate=True)
    with pytest.raises(ValueError, match="num_shots=-1"):
        Prompting(model, HARDWARE, SST2, num_shots=-1)
    with pytest.raises(ValueError, match=r"objective_metric='rouge1': is not measured\. Choose among accuracy"):
        Prompting(model, HARDWARE, SST2, objective_metric="rouge1")
