"""Signals, lost folders, torn checkpoints and other ways in which a run ends or goes on."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from loops import Evaluations, model, rows, stream, trainer

from modern_llm.data.text.packing import PackedStream
from modern_llm.data.text.tokens import TokenCorpus
from modern_llm.objectives.language_modeling import LanguageModeling
from modern_llm.training.callbacks import Callback
from modern_llm.training.checkpoint import CheckpointError
from modern_llm.training.guard import TrainingDivergedError
from modern_llm.training.interruption import Interrupted


class Signals(Callback):
    """Sends this process signals behind a step."""

    def __init__(self, step: int, count: int) -> None:
        self.step, self.count = step, count

    def on_step(self, step: int, loss: float) -> None:
        if step == self.step:
            for _ in range(self.count):
                os.kill(os.getpid(), signal.SIGINT)


def test_a_stop_while_a_checkpoint_is_written_ends_before_evaluation_and_next_step(
    tmp_path: Path, corpus: TokenCorpus
) -> None:
    loop = trainer(tmp_path, eval_every=2)
    loop.save_extras = lambda folder: os.kill(os.getpid(), signal.SIGTERM)
    steps: list[int] = []

    class Count(Callback):
        def on_step(self, step: int, loss: float) -> None:
            steps.append(step)

    loop.callbacks = [Count()]
    evaluator = Evaluations([])  # to evaluate would raise StopIteration
    with pytest.raises(Interrupted) as stop:
        loop.fit(model(), LanguageModeling(), stream(corpus), evaluator)
    assert steps == [1, 2]
    assert stop.value.signal_number == signal.SIGTERM
    assert stop.value.checkpoint.name == "step_00000002"


def test_a_second_signal_names_the_checkpoint_there_is(tmp_path: Path, corpus: TokenCorpus) -> None:
    loop = trainer(tmp_path, save_every=2)
    loop.callbacks = [Signals(3, 2)]
    with pytest.raises(Interrupted) as stop:
        loop.fit(model(), LanguageModeling(), stream(corpus))
    assert stop.value.checkpoint == tmp_path / "checkpoints" / "step_00000002"
    resumed = trainer(tmp_path, save_every=2)
    resumed.callbacks = [Signals(3, 2)]
    with pytest.raises(Interrupted) as stop:  # before it has written one of its own
        resumed.fit(model(), LanguageModeling(), stream(corpus))
    assert stop.value.checkpoint == tmp_path / "checkpoints" / "step_00000002"


def test_a_folder_that_is_deleted_meanwhile_is_named(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Delete(Callback):
        def on_step(self, step: int, loss: float) -> None:
            if step == 2:
                shutil.rmtree(tmp_path / "run")

    loop = trainer(tmp_path / "run")
    loop.callbacks = [Delete()]
    with pytest.raises(FileNotFoundError, match=r"run is gone: .* deleted while it was training"):
        loop.fit(model(), LanguageModeling(), stream(corpus))
    loop = trainer(tmp_path / "run", log_every=100, save_every=2)
    loop.callbacks = [Delete()]
    with pytest.raises(CheckpointError, match="deleted while the run was training") as error:
        loop.fit(model(), LanguageModeling(), stream(corpus))
    assert "Free disk space" not in str(error.value)


def test_a_message_renames_no_folder(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Bad(LanguageModeling):
        def __call__(self, model: Any, batch: Any) -> Any:
            output = super().__call__(model, batch)
            output.loss_sum = output.loss_sum * torch.nan
            return output

    trainer(tmp_path, max_steps=2, save_every=1).fit(model(), LanguageModeling(), stream(corpus))
    first = tmp_path / "checkpoints" / "step_00000001"
    (first / "model.safetensors").unlink()
    loop = trainer(tmp_path, max_steps=9, max_bad_steps=2)
    with pytest.raises(TrainingDivergedError, match=r"Last good checkpoint: .*step_00000002"):
        loop.fit(model(), Bad(), stream(corpus))
    assert first.is_dir()


def test_nothing_but_torn_checkpoints_is_no_beginning(tmp_path: Path, corpus: TokenCorpus) -> None:
    trainer(tmp_path, max_steps=4, save_every=2).fit(model(), LanguageModeling(), stream(corpus))
    written = rows(tmp_path)
    folders = sorted((tmp_path / "checkpoints").glob("step_*"))
    for folder in folders:
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is torn .*step_00000004.*step_00000002"):
        trainer(tmp_path, max_steps=9).fit(model(), LanguageModeling(), stream(corpus))
    assert sorted((tmp_path / "checkpoints").glob("step_*")) == folders
    assert rows(tmp_path) == written


def test_metrics_that_were_shortened_by_another_hand(tmp_path: Path, corpus: TokenCorpus) -> None:
    trainer(tmp_path, max_steps=4).fit(model(), LanguageModeling(), stream(corpus))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.warns(UserWarning, match="rows before it are missing"):
        trainer(tmp_path, max_steps=6).fit(model(), LanguageModeling(), stream(corpus))
    assert b"\0" not in path.read_bytes()
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 5, 6]


def test_overflow_without_end_stops_an_fp16_run(tmp_path: Path, corpus: TokenCorpus) -> None:
    class Endless(LanguageModeling):
        """Gradients that overflow at any loss scale."""

        def __call__(self, model: Any, batch: Any) -> Any:
            output = super().__call__(model, batch)
            model.final_norm.weight.register_hook(lambda grad: grad * torch.inf)
            return output

    loop = trainer(tmp_path, {"precision": "fp16"}, max_steps=10_000, log_every=1000, save_every=10_000)
    with pytest.raises(TrainingDivergedError, match="in 5 consecutive steps"):
        loop.fit(model(), Endless(), stream(corpus))
    assert loop.progress.step < 40


class Untargeted(PackedStream):
    """Some batches have nothing to predict."""

    empty = range(2, 4)

    def __next__(self) -> dict[str, torch.Tensor]:
        batch = super().__next__()
        self.given = getattr(self, "given", 0) + 1
        if self.given in self.empty:
            batch["labels"] = torch.full_like(batch["labels"], -100)
        return batch


def test_a_batch_without_targets_is_skipped_with_a_word(tmp_path: Path, corpus: TokenCorpus) -> None:
    data = Untargeted(corpus, 16, 4, seed=0)
    with pytest.warns(UserWarning, match=r"sequences \[.*\] have no target to learn from and are skipped"):
        result = trainer(tmp_path, max_steps=3).fit(model(), LanguageModeling(), data)
    assert result.step == 3
    assert data.given == 5
    assert all(row["loss"] > 1 for row in rows(tmp_path))


@pytest.mark.filterwarnings("ignore:.*no target")
def test_data_without_any_target_are_refused(tmp_path: Path, corpus: TokenCorpus) -> None:
    data = Untargeted(corpus, 16, 4, seed=0)
    data.empty = range(10**6)
    with pytest.raises(ValueError, match=r"100 batches in a row without a target.*sequences \["):
        trainer(tmp_path).fit(model(), LanguageModeling(), data)
