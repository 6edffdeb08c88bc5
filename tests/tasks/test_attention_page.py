"""The page of attention maps in a browser."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from bases import trained_from_scratch
from browser import Browser, find_browser
from made_models import byte_tokenizer

from modern_llm.evaluation.attention_maps import attention_maps
from modern_llm.experiment.contract import Paths, RunFolder
from modern_llm.pretrained.settings import ModelFromRun
from modern_llm.tasks.attention_maps import AttentionMapsOfText
from modern_llm.training.settings import Hardware

TEXT = "a </script><b>x"


def test_a_token_that_is_pointed_at_tells_what_it_attends_to(tmp_path: Path) -> None:
    run = trained_from_scratch(tmp_path / "run", byte_tokenizer())
    task = AttentionMapsOfText(ModelFromRun(str(run)), Hardware(device="cpu", precision="fp32"), Paths(), TEXT)
    metrics = task.run(RunFolder(tmp_path, {}))
    with (tmp_path / "heads.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert sum(float(row["sink_mass"]) for row in rows) / 4 == pytest.approx(metrics["sink_mass"])
    for name in ("attention_maps.png", "heads.png"):
        assert (tmp_path / name).stat().st_size > 3000
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium or Chrome on the path")
    from modern_llm.experiment.loading import load_model
    from modern_llm.training.runtime import Runtime

    loaded = load_model(ModelFromRun(str(run)), Runtime(task.hardware), None, [], train=False)
    weights = attention_maps(loaded.base, [0, *byte_tokenizer().encode(TEXT)]).weights
    with Browser(program, tmp_path / "profile") as browser:
        browser.screen(400, 800, phone=True)
        browser.open(tmp_path / "report.html")
        browser.value(
            "const s = document.querySelector('select[name=layer]'); s.value = 1; s.dispatchEvent(new Event('change'))"
        )
        browser.value(
            "const h = document.querySelector('select[name=head]'); h.value = 1; h.dispatchEvent(new Event('change'))"
        )
        browser.click(".tokens button:nth-child(8)")
        told = browser.value("document.querySelector('.attention figcaption').textContent")
        place = int(torch.argmax(weights[1, 1, 7]))
        share = 100 * weights[1, 1, 7, place]
        assert told.startswith(f"Layer 1, head 1: “{TEXT[6]}” attends to")
        assert f"{float(share):.0f}"[0] in told
        labels = browser.value("[...document.querySelectorAll('.tokens button')].map(b => b.textContent).join('|')")
        assert labels == "⟨<|endoftext|>⟩|" + "|".join(TEXT.replace(" ", "␣"))
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert browser.complaints() == []
