"""What each logger wrote, read back with its own library; an interrupted run that goes on has each step once."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modern_llm.training.logs.loggers import Logger, MLflow, TensorBoard, WandB

RECORD = {"seed": 3, "model": {"d_model": 32, "rope": {"theta": 1e4}}, "name": "tried"}
ROWS: list[dict[str, Any]] = [{"step": step, "loss": 5.0 / step, "lr": 1e-3} for step in range(1, 7)]
ROWS.insert(4, {"step": 4, "validation_loss": 1.5})


def write(logger: Logger, folder: Path) -> None:
    """A run that is killed behind step 4 and goes on from step 2; whoever is killed says no word of an end."""
    (first,) = logger.callbacks(folder, RECORD)
    first.on_start(0, 6)
    for row in ROWS[:5]:
        first.on_metrics(row)
    first.on_end()
    (second,) = logger.callbacks(folder, RECORD)
    second.on_start(2, 6)
    for row in ROWS[2:]:
        second.on_metrics(row)
    second.on_end()


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(TensorBoard(), tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("loss")}
    assert losses == pytest.approx({step: 5.0 / step for step in range(1, 7)})
    assert len(events.Scalars("loss")) == 6
    assert [(event.step, event.value) for event in events.Scalars("validation_loss")] == [(4, 1.5)]


def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    (tmp_path / "run").mkdir()
    write(MLflow(str(tmp_path / "store"), "tries"), tmp_path / "run")
    client = MlflowClient((tmp_path / "store").as_uri())
    experiment = client.get_experiment_by_name("tries")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "3", "model.d_model": "32", "model.rope.theta": "10000.0", "name": "tried"}
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert losses == [(step, 5.0 / step) for step in range(1, 7)]
    assert [m.value for m in client.get_metric_history(run.info.run_id, "validation_loss")] == [1.5]


def leveldb_records(content: bytes, header: int = 7, block: int = 32768) -> Iterator[bytes]:
    """Records of a log in LevelDB's format, behind the header of W&B's file; a record may be cut at a block's end."""
    place, parts = header, list[bytes]()
    while place + 7 <= len(content):
        if block - place % block < 7:  # no room for a record's own header
            place += block - place % block
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        parts.append(content[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield b"".join(parts)
            parts = []


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    for name, folder in (("WANDB_CONFIG_DIR", "config"), ("WANDB_CACHE_DIR", "cache"), ("WANDB_DATA_DIR", "data")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "run").mkdir()
    write(WandB("tries", "offline"), tmp_path / "run")
    records = []
    for _ in range(300):  # its own process writes the file, and ends a moment later
        files = sorted(tmp_path.glob("run/wandb/offline-run-*/*.wandb"), key=os.path.getmtime)
        records = [Record.FromString(data) for path in files for data in leveldb_records(path.read_bytes())]
        if sum(record.WhichOneof("record_type") == "exit" for record in records) == 2:
            break
        time.sleep(0.1)
    losses: dict[int, float] = {}
    settings: dict[str, str] = {}
    identities = set()
    for record in records:
        if record.WhichOneof("record_type") == "run":
            identities.add((record.run.run_id, record.run.project, record.run.display_name))
            settings |= {item.key: item.value_json for item in record.run.config.update}
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        if "loss" in values:
            losses[int(values["_step"])] = float(values["loss"])
    assert losses == pytest.approx({step: 5.0 / step for step in range(1, 7)})
    assert settings["seed"] == "3"
    ((identity, project, shown),) = identities  # both sittings are one run
    assert (project, shown) == ("tries", "run")
    assert identity.endswith("-run")
