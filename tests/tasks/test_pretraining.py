"""Further training and perplexity of models that are there already, against transformers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bases import trained_from_scratch
from made_models import byte_tokenizer

from modern_llm.data.text.sources import TextFiles
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.experiment.samples import Samples
from modern_llm.pretrained.loading import load_hugging_face
from modern_llm.pretrained.settings import FullFinetuning, LoRA, ModelFromRun, PretrainedModel
from modern_llm.tasks.pretraining import Pretraining
from modern_llm.training.optimization.optimizers import AdamW
from modern_llm.training.settings import Hardware, TrainerSettings

HARDWARE = Hardware(device="cpu", precision="fp32", eval_batch_size=4)


@pytest.fixture
def text(tmp_path: Path) -> TextFiles:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and looked at the dog.\n" * 60)
    return TextFiles(train=[str(path)], validation_percent=20)


def task(hub: Path, model: Any, text: TextFiles, cache: Path, steps: int = 6, **changes: Any) -> Pretraining:
    trainer = TrainerSettings(max_steps=steps, batch_size=4, optimizer=AdamW(lr=3e-3), log_every=1, eval_every=3)
    given: dict[str, Any] = {"model": model, "trainer": trainer, "hardware": HARDWARE, "data": text, "seq_len": 32}
    given |= {"paths": Paths(cache=str(cache), mirror=str(hub)), "samples": Samples(["the"], 4)}
    return Pretraining(**{**given, **changes})


def run(made: Any, folder: Path) -> dict[str, float]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("{}")
    return made.run(RunFolder(folder, {}))


@pytest.mark.parametrize("name", ["openai-community/gpt2", "made/llama"])
def test_the_perplexity_of_a_pretrained_model(hub: Path, tmp_path: Path, text: TextFiles, name: str) -> None:
    made = task(hub, PretrainedModel(name, FullFinetuning()), text, tmp_path / "cache", train=False)
    metrics = run(made, tmp_path / "run")
    assert "steps" not in metrics
    assert metrics["trained_parameters"] == 0
    loaded = load_hugging_face(PretrainedModel(name, FullFinetuning()), str(hub))
    (document,) = text.documents("validation", None)
    eos = loaded.tokenizer.eos_id
    ids = [eos, *loaded.tokenizer.encode(document), eos]
    nats, scored = 0.0, 0
    for start in range(0, len(ids) - 1, 32):
        piece = torch.tensor([ids[start : start + 33]])
        with torch.no_grad():
            chance = loaded.base.eval()(piece[:, :-1]).logits.log_softmax(-1)
        for place, target in enumerate(piece[0, 1:].tolist()):
            if target != eos:
                nats, scored = nats - chance[0, place, target].item(), scored + 1
    assert metrics["validation_tokens_scored"] == scored
    assert metrics["validation_loss"] == pytest.approx(nats / scored, abs=1e-5)
    assert metrics["validation_byte_perplexity"] == pytest.approx(math.exp(nats / len(document.encode())), rel=1e-5)


@pytest.mark.parametrize("lora", [LoRA(rank=4, alpha=8), FullFinetuning()], ids=["lora", "full"])
def test_a_pretrained_model_is_trained_further(hub: Path, tmp_path: Path, text: TextFiles, lora: Any) -> None:
    made = task(hub, PretrainedModel("made/llama", lora), text, tmp_path / "cache", steps=12)
    before = run(task(hub, made.model, text, tmp_path / "cache", train=False), tmp_path / "before")
    after = run(made, tmp_path / "run")
    assert after["validation_loss"] < before["validation_loss"] - 0.1
    again = ModelFromRun(str(tmp_path / "run"), FullFinetuning())
    measured = run(task(hub, again, text, tmp_path / "cache", train=False), tmp_path / "measured")
    assert measured["validation_loss"] == pytest.approx(after["validation_loss"], abs=1e-5)
    on = [json.loads((tmp_path / name / "result.json").read_text())["evaluated_on"] for name in ("before", "run")]
    assert on[0] == on[1]  # so that a report may set them against each other


def test_a_decoder_of_an_earlier_run_is_trained_further(hub: Path, tmp_path: Path, text: TextFiles) -> None:
    base = ModelFromRun(str(trained_from_scratch(tmp_path / "base", byte_tokenizer())), FullFinetuning())
    before = run(task(hub, base, text, tmp_path / "cache", train=False), tmp_path / "before")
    after = run(task(hub, base, text, tmp_path / "cache", steps=12), tmp_path / "after")
    assert after["validation_loss"] < before["validation_loss"]


class TestRefusals:
    def test_an_encoder_decoder(self, hub: Path, tmp_path: Path, text: TextFiles) -> None:
        with pytest.raises(ValueError, match="an encoder-decoder gives no text a perplexity"):
            run(task(hub, PretrainedModel("google-t5/t5-small"), text, tmp_path / "cache"), tmp_path / "run")

    def test_sequences_longer_than_the_context(self, hub: Path, tmp_path: Path, text: TextFiles) -> None:
        made = task(hub, PretrainedModel("openai-community/gpt2"), text, tmp_path / "cache", seq_len=99999)
        with pytest.raises(ValueError, match=r"task\.seq_len=99999: is longer than the model's context"):
            run(made, tmp_path / "run")
