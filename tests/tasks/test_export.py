"""Exported models and their cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from commands import Workplace, launch
from transformers import AutoModelForCausalLM, AutoTokenizer

from modern_llm.reporting.model_card import model_card


def test_a_run_is_exported_with_a_card_that_repeats_its_figures(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    plain = ["model=decoder", "model.d_model=32", "model.n_layers=2", "model.max_seq_len=32", "trainer.max_steps=2"]
    place.run(*plain)
    run = place.only_run()
    words = ["task=export", "model=from_run", f"model.path={run}", "task.license=mit", f"paths.outputs={tmp_path}/out"]
    done = launch(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("out/*/*/model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.model_type == "qwen3"
    assert torch.isfinite(model(**tokenizer("3 times 3", return_tensors="pt")).logits).all()
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(head)["license"] == "mit"
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert "validation_loss" in text
    assert f"{metrics['validation_loss']:.3f}" in text
    assert "python launch.py" in text
    assert "task.data.train" in text  # the command
    assert "No licence" not in text


def test_a_card_without_a_run_says_what_is_known() -> None:
    card = model_card(None, "owner/name", "LlamaForCausalLM", 1_500_000, None, "gguf", None)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "unknown"
    assert head["library_name"] == "gguf"
    assert "1.5 million parameters, made for any number of tokens" in card
    assert "No licence has been given" in card


def test_gguf_asks_for_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from modern_llm.pretrained.settings import PretrainedModel
    from modern_llm.tasks.export import Export

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"task\.format='?gguf'?: needs the package gguf"):
        Export(PretrainedModel("owner/name"), format="gguf")
