"""What is done beside the training: batches read ahead, checkpoints written behind, nothing of either to be seen."""

from __future__ import annotations

import gc
import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Evaluations, model, rows, stream, trainer
from safetensors.torch import load_file

from modern_llm import tensor_files
from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.ramp import Ramp
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.ahead import ReadAhead, may_be_read_ahead
from modern_llm.training.behind import Behind
from modern_llm.training.callbacks import Callback
from modern_llm.training.checkpoint import CheckpointError, Checkpoints, model_tensors
from modern_llm.training.runtime import collecting_little

CPU = torch.device("cpu")


def ahead(data: Any) -> ReadAhead:
    return ReadAhead(data, lambda batch: batch)


def test_a_stream_read_ahead_gives_the_same_batches_places_and_facts(corpus: TokenCorpus) -> None:
    plain, early = stream(corpus), ahead(stream(corpus))
    for _ in range(9):
        expected, found = next(plain), next(early)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
        assert early.state_dict() == plain.state_dict()
        assert early.facts() == plain.facts()
    resumed = ahead(stream(corpus))
    resumed.load_state_dict(early.state_dict())
    assert torch.equal(next(resumed)["input_ids"], next(plain)["input_ids"])


def test_what_goes_wrong_in_reading_comes_with_its_batch(corpus: TokenCorpus) -> None:
    class Torn(PackedStream):
        def __next__(self) -> Any:
            if self.position >= 8:
                raise OSError("the disk is gone")
            return super().__next__()

    early = ahead(Torn(corpus, 16, 4, seed=0))
    next(early)
    next(early)
    with pytest.raises(OSError, match="the disk is gone"):
        next(early)


def test_a_stream_that_follows_the_run_is_not_read_ahead(corpus: TokenCorpus) -> None:
    assert may_be_read_ahead(PackedStream(corpus, 16, 4, seed=0))
    assert not may_be_read_ahead(PackedStream(corpus, 16, 4, seed=0, ramp=Ramp()))
    assert not may_be_read_ahead(iter([]))  # type: ignore[arg-type]


def test_a_run_with_all_of_it_is_the_run_without(tmp_path: Path, corpus: TokenCorpus) -> None:
    logged = {}
    for overlap in ("off", "on"):
        loop = trainer(tmp_path / overlap, {"overlap": overlap}, eval_every=2, keep_checkpoints=2)
        result = loop.fit(model(), LanguageModeling(), stream(corpus), Evaluations([3.0, 1.0, 2.0]))
        assert result.best_checkpoint is not None
        assert result.best_checkpoint.name == "step_00000004"
        logged[overlap] = rows(tmp_path / overlap)
    timed = ("seconds", "tokens_per_second", "peak_memory_gb")
    for mine, reference in zip(logged["on"], logged["off"], strict=True):
        assert {k: v for k, v in mine.items() if k not in timed} == {
            k: v for k, v in reference.items() if k not in timed
        }
    written = [sorted(p.name for p in (tmp_path / overlap / "checkpoints").iterdir()) for overlap in ("off", "on")]
    assert written[0] == written[1]
    for name in written[0]:
        if name.startswith("step_"):
            for kind in ("model.safetensors", "trainer.safetensors"):
                mine, theirs = (load_file(tmp_path / o / "checkpoints" / name / kind) for o in ("on", "off"))
                assert all(torch.equal(mine[key], theirs[key]) for key in mine.keys() | theirs.keys())


def test_a_checkpoint_holds_what_was_there_when_it_was_asked_for(tmp_path: Path) -> None:
    """The writing begins only after the weights have changed."""
    net, may_write = torch.nn.Linear(3, 2), threading.Event()
    expected = net.weight.detach().clone()
    checkpoints = Checkpoints(tmp_path, 2, Behind(overlaps=True))
    checkpoints.behind.do(may_write.wait)
    state = {"moments": torch.ones(3), "step": {"count": 1}}
    checkpoints.behind.settle = lambda: None  # type: ignore[method-assign]
    target = checkpoints.save(1, model_tensors(net), state, lambda folder: None)
    del checkpoints.behind.settle  # type: ignore[attr-defined]
    with torch.no_grad():
        net.weight.zero_()
        state["moments"].zero_()  # type: ignore[attr-defined]
        state["step"]["count"] = 2  # type: ignore[index]
    assert not target.exists()
    may_write.set()
    checkpoints.settle()
    assert torch.equal(load_file(target / "model.safetensors")["weight"], expected)
    found = checkpoints.load_state(target)
    assert torch.equal(found["moments"], torch.ones(3))
    assert found["step"] == {"count": 1}


def test_a_write_that_fails_ends_the_run_with_the_last_good_one_named(tmp_path: Path, corpus: TokenCorpus) -> None:
    loop = trainer(tmp_path, {"overlap": "on"}, save_every=2)
    asked: list[Path] = []

    def extras(folder: Path) -> None:
        asked.append(folder)
        if len(asked) == 2:
            raise OSError(28, "No space left on device")

    loop.save_extras = extras
    with pytest.raises(CheckpointError, match=r"step 4 could not be written.*No space left.*step_00000002"):
        loop.fit(model(), LanguageModeling(), stream(corpus))
    assert [p.name for p in (tmp_path / "checkpoints").glob("step_*")] == ["step_00000002"]


def test_the_collector_leaves_alone_what_was_there_before(tmp_path: Path, corpus: TokenCorpus) -> None:
    frozen = []

    class Watch(Callback):
        def on_step(self, step: int, loss: float) -> None:
            frozen.append(gc.get_freeze_count())

    loop = trainer(tmp_path)
    loop.callbacks = [Watch()]
    gc.unfreeze()
    try:
        loop.fit(model(), LanguageModeling(), stream(corpus))
        assert min(frozen) > 10_000
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()  # as all tests are


def test_what_was_frozen_before_stays_so() -> None:
    gc.freeze()
    with collecting_little():
        pass
    assert gc.get_freeze_count() > 0


def test_a_file_is_what_the_library_reads_and_its_hash_is_its_own(tmp_path: Path) -> None:
    kinds = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
             torch.int8, torch.uint8, torch.bool]  # fmt: skip
    torch.manual_seed(0)
    tensors = {f"{kind}.{shape}": (9 * torch.randn(shape)).to(kind) for kind in kinds for shape in ((3, 5), (7,), ())}
    tensors |= {"none": torch.zeros(0, 4), "turned": torch.arange(6.0).view(2, 3).T, 'é"': torch.ones(1)}
    digest = tensor_files.write(tmp_path / "x.safetensors", tensors)
    assert digest == hashlib.sha256((tmp_path / "x.safetensors").read_bytes()).hexdigest()
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    tensor_files.write(tmp_path / "empty.safetensors", {})
    assert load_file(tmp_path / "empty.safetensors") == {}
