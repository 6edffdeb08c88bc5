"""Checkpoints that are whole or known to be torn."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modern_llm.training import random_states
from modern_llm.training.checkpoint import (
    Checkpoints,
    join_tensors,
    load_model_tensors,
    model_tensors,
    split_tensors,
    torn,
)


def write_notes(folder: Path) -> None:
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")


def save(checkpoints: Checkpoints, step: int) -> Path:
    torch.manual_seed(step)
    return checkpoints.save(step, model_tensors(nn.Linear(3, 2)), {"a": torch.arange(step), "b": {0: 1.5}}, write_notes)


def test_a_tear_at_any_byte_of_any_file_is_found(tmp_path: Path) -> None:
    whole = save(Checkpoints(tmp_path / "c", keep=2), 7)
    assert torn(whole) is None
    files = [f for f in sorted(whole.rglob("*")) if f.is_file()]
    assert len(files) == 5
    generator = random.Random(0)
    for file in files:
        content = file.read_bytes()
        for cut in {0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(20))}:
            file.write_bytes(content[:cut])
            assert torn(whole) is not None, f"{file} cut to {cut} bytes"
        if file.name != "manifest.json":
            for place in {0, len(content) - 1, *(generator.randrange(len(content)) for _ in range(20))}:
                flipped = bytearray(content)
                flipped[place] ^= 1 << generator.randrange(8)
                file.write_bytes(bytes(flipped))
                assert torn(whole) is not None, f"{file} changed at byte {place}"
        file.unlink()
        assert torn(whole) is not None
        file.write_bytes(content)
    assert torn(whole) is None


def test_the_one_before_a_torn_one_is_used_with_a_warning(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=3)
    first, second = save(checkpoints, 1), save(checkpoints, 2)
    (second / "model.safetensors").write_bytes((second / "model.safetensors").read_bytes()[:-3])
    with pytest.warns(UserWarning, match=r"step_00000002 is torn .*model\.safetensors.*step_00000001 is used"):
        assert checkpoints.last_good() == first
    assert (tmp_path / "step_00000002.torn").is_dir()
    assert checkpoints.all() == [first]


def test_what_was_cut_off_while_writing_is_cleared_and_never_read(tmp_path: Path) -> None:
    first = save(Checkpoints(tmp_path, keep=2), 1)
    shutil.copytree(first, tmp_path / "step_00000002.part")
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.last_good() == first
    assert not (tmp_path / "step_00000002.part").exists()


def test_retention_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    best = save(checkpoints, 1)
    checkpoints.mark_best(best, 0.5)
    for step in range(2, 6):
        save(checkpoints, step)
    assert [p.name for p in checkpoints.all()] == ["step_00000001", "step_00000004", "step_00000005"]
    assert checkpoints.best == best
    checkpoints.mark_best(checkpoints.all()[-1], 0.4)
    assert [p.name for p in checkpoints.all()] == ["step_00000004", "step_00000005"]


def test_state_survives_the_disk(tmp_path: Path) -> None:
    state = {"x": {3: {"m": torch.randn(2, 3), "n": 4}}, "y": None, "z": 0.1 + 0.2, "t": torch.tensor(5)}
    plain, tensors = split_tensors(state)
    back = join_tensors(plain, tensors)
    assert torch.equal(back["x"][3]["m"], state["x"][3]["m"])
    assert back["x"][3]["n"] == 4
    assert back["y"] is None
    assert back["z"] == 0.1 + 0.2
    checkpoints = Checkpoints(tmp_path, keep=1)
    folder = checkpoints.save(1, model_tensors(nn.Linear(2, 2)), state, lambda folder: None)
    loaded = checkpoints.load_state(folder)
    assert torch.equal(loaded["x"][3]["m"], state["x"][3]["m"])
    assert loaded["z"] == 0.1 + 0.2


def test_random_generators_continue_where_they_were() -> None:
    state = random_states.read()
    expected = random.random(), np.random.rand(), torch.rand(3)
    random_states.restore(state)
    again = random.random(), np.random.rand(), torch.rand(3)
    assert expected[:2] == again[:2]
    assert torch.equal(expected[2], again[2])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, keep=1).save(1, model_tensors(nn.Linear(3, 2)), {}, lambda folder: None)
    with pytest.raises(RuntimeError, match="another model"):
        load_model_tensors(nn.Linear(4, 2), folder)


def test_a_failed_write_leaves_the_last_good_one_and_names_it(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    first = save(checkpoints, 1)

    def fails(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError, match=r"step 2 could not be written.*No space left.*step_00000001"):
        checkpoints.save(2, model_tensors(nn.Linear(3, 2)), {}, fails)
    assert torn(first) is None
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000001"]


def test_generators_of_devices_that_are_gone_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of twelve GPUs goes on with one. The machine of the test has none: what torch is told is recorded."""
    state = random_states.read() | {f"cuda{i}": torch.full((16,), i, dtype=torch.uint8) for i in range(12)}
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, device: told.append((int(s[0]), device)))
    for count, expected in ((1, [(0, 0)]), (12, [(i, i) for i in range(12)]), (13, [(i, i) for i in range(12)])):
        told.clear()
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        random_states.restore(state)
        assert told == expected


def forged(folder: Path, files: dict[str, Any]) -> Path:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] |= files
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_manifest_that_leads_astray_is_refused_unread(tmp_path: Path) -> None:
    """Outside the folder, a device without end, a link, a pipe that nobody writes to, and a file of a petabyte."""
    checkpoints = Checkpoints(tmp_path / "c", keep=9)
    secret = tmp_path / "secret"
    secret.write_text("x")
    fact = {"bytes": 1, "sha256": hashlib.sha256(b"x").hexdigest()}
    for number, name in enumerate(["../../secret", str(secret), "tokenizer/../../../secret"]):
        assert "outside" in str(torn(forged(save(checkpoints, number + 1), {name: fact})))
    whole = save(checkpoints, 5)
    (whole / "link").symlink_to(secret)
    assert "no plain file" in str(torn(forged(whole, {"link": fact})))
    endless = save(checkpoints, 6)
    (endless / "zero").symlink_to("/dev/zero")
    assert "no plain file" in str(torn(forged(endless, {"zero": {"bytes": 0, "sha256": fact["sha256"]}})))
    piped = save(checkpoints, 8)
    os.mkfifo(piped / "pipe")
    assert "no plain file" in str(torn(forged(piped, {"pipe": {"bytes": 0, "sha256": fact["sha256"]}})))
    vast = save(checkpoints, 9)
    with (vast / "vast").open("wb") as file:
        file.truncate(2**42)
    assert f"{2**42} bytes" in str(torn(forged(vast, {"vast": {"bytes": 2**42, "sha256": fact["sha256"]}})))
    manifest = save(checkpoints, 10) / "manifest.json"
    manifest.unlink()
    manifest.symlink_to("/dev/zero")
    assert "no plain file" in str(torn(manifest.parent))
