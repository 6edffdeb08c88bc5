"""The coordinate check: its slopes against closed forms, and what it finds of recipes that are known to differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import ROOT
from hydra import compose, initialize_config_dir

from modern_llm.config.instantiate import build
from modern_llm.evaluation.coordinates import slopes
from modern_llm.experiment.contract import RunFolder


def test_slopes_of_powers() -> None:
    widths = [64, 128, 512]
    sizes = [{"flat": 3.0, "root": 2 * width**0.5, "falls": 7 / width} for width in widths]
    found = slopes(widths, sizes)
    assert found == pytest.approx({"flat": 0.0, "root": 0.5, "falls": -1.0})


def checked(tmp_path: Path, *overrides: str) -> dict[str, float]:
    own = [f"paths.cache={tmp_path}/cache", "hardware=cpu", "hardware.precision=fp32", "task=coordinate_check",
           "task/tokenizer=bytes", "task/data=text_files", f"task.data.train=[{tmp_path}/text.txt]",
           "task.widths=[32,64,128]", "task.steps=3", "task.seeds=1", "model.n_layers=2", "model.d_model=64",
           "model.n_heads=4", "model.max_seq_len=32", "name=x"]  # fmt: skip
    (tmp_path / "text.txt").write_text(" ".join(f"{i} and {i * i}" for i in range(3000)))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        task: Any = build(compose("config", overrides=[*own, *overrides]).task)
    return task.run(RunFolder(tmp_path, {}))


def test_the_default_suits_every_width_and_one_rate_of_adamw_does_not(tmp_path: Path) -> None:
    for name in ("ours", "adamw"):
        (tmp_path / name).mkdir()
    ours = checked(tmp_path / "ours")
    adamw = checked(tmp_path / "adamw", "model=decoder", "model.d_model=64", "trainer/optimizer=adamw",
                    "trainer.optimizer.lr=0.02")  # fmt: skip
    assert ours["largest_slope"] < 0.3
    assert adamw["slope_logits"] > 0.4
    assert (tmp_path / "ours" / "coordinates.png").stat().st_size > 5000
    assert (tmp_path / "ours" / "report.html").exists()


def test_widths_must_hold_whole_heads(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"task\.widths=.*whole groups of heads of 16"):
        checked(tmp_path, "task.widths=[24,64]")
