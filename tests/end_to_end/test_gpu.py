"""Commands on a GPU: what they compute, hold in memory and read back. Needs a GPU that CUDA knows."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from commands import Workplace, final_weights, launch, read_rows, result

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA knows")
GPU = ["hardware.device=cuda"]


def test_a_run_is_that_of_the_cpu(tmp_path: Path) -> None:
    """The same batches and weights: what differs is rounding, which training makes larger with every step."""
    losses = []
    for device in ("cpu", "cuda"):
        place = Workplace(tmp_path)
        place.run(f"hardware.device={device}", "trainer.max_steps=12", "trainer.log_every=1", f"name={device}")
        (folder,) = place.outputs.glob(f"*/*_{device}")
        losses.append([row["loss"] for row in read_rows(folder) if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_resumed_run_goes_on_as_the_one_left_alone(tmp_path: Path, how: signal.Signals) -> None:
    length = ["trainer.max_steps=120", "trainer.save_every=7", "trainer.eval_every=40", "trainer.log_every=3",
              "model.dropout=0.1", *GPU]  # fmt: skip
    for name in ("alone", "stopped"):
        (tmp_path / name).mkdir()
    alone, place = Workplace(tmp_path / "alone"), Workplace(tmp_path / "stopped")
    alone.run(*length)
    _, folder = place.stop_at(30, how, *length)
    place.run(*length, "resume=auto")
    assert read_rows(folder) == read_rows(alone.only_run())
    assert final_weights(folder) == final_weights(alone.only_run())


def test_a_default_run_learns(tmp_path: Path) -> None:
    done = launch(*GPU, "trainer.max_steps=60", f"paths.outputs={tmp_path}", "name=default", timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = tmp_path.glob("*/*_default")
    metrics = result(folder)["metrics"]
    assert math.isfinite(metrics["validation_token_perplexity"])
    assert metrics["validation_token_perplexity"] < 200
