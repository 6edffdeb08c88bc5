"""A run that is killed, interrupted or short of disk, against one that is left alone."""

from __future__ import annotations

import random
import resource
import signal
from pathlib import Path

import pytest
from commands import Workplace, final_weights, launch_afresh, read_rows, result

LENGTH = ["trainer.max_steps=150", "trainer.save_every=7", "trainer.eval_every=20", "trainer.log_every=3"]
# Dropout makes every step depend on the random generator, too.
WHOLE = [*LENGTH, "model.dropout=0.1", "trainer.batch_size=4"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Workplace(tmp_path_factory.mktemp("undisturbed"))
    place.run(*WHOLE)
    return place.only_run()


@pytest.mark.parametrize(
    ("how", "overlap"),
    [(signal.SIGKILL, "off"), (signal.SIGKILL, "on"), (signal.SIGINT, "off"), (signal.SIGTERM, "on")],
)
def test_a_stopped_and_resumed_run_is_the_run_that_was_never_stopped(
    how: signal.Signals, overlap: str, tmp_path: Path, undisturbed: Path
) -> None:
    place = Workplace(tmp_path)
    # The undisturbed run's text, at this place's path: the content is the same, and so is everything else.
    whole = [*WHOLE, f"hardware.overlap={overlap}"]
    stopped, folder = place.stop_at(random.randrange(9, 120), how, *whole)
    if how is signal.SIGKILL:
        assert stopped.returncode == -signal.SIGKILL
    else:
        assert stopped.returncode == 128 + how
        assert "Continue with the same command and resume=auto" in stopped.stderr
        steps = read_rows(folder)[-1]["step"]
        left = max((folder / "checkpoints").glob("step_*")).name
        assert int(left.removeprefix("step_")) >= steps  # the stop itself wrote a checkpoint
    assert not (folder / "result.json").exists()
    place.run(*whole, "resume=auto")
    assert place.only_run() == folder
    assert final_weights(folder) == final_weights(undisturbed)
    assert read_rows(folder) == read_rows(undisturbed)
    ours, theirs = result(folder)["metrics"], result(undisturbed)["metrics"]
    assert ours["epochs"] == theirs["epochs"]  # of what was learned from, not of what was read ahead
    assert {k: ours[k] for k in ours if "loss" in k or "perplexity" in k} == {
        k: theirs[k] for k in theirs if "loss" in k or "perplexity" in k
    }


def test_killed_again_and_again(tmp_path: Path, undisturbed: Path) -> None:
    place = Workplace(tmp_path)
    for step in (20, 60, 100):
        _, folder = place.stop_at(step, signal.SIGKILL, *WHOLE, "resume=auto")
    place.run(*WHOLE, "resume=auto")
    assert place.only_run() == folder
    assert final_weights(folder) == final_weights(undisturbed)
    assert read_rows(folder) == read_rows(undisturbed)


def test_what_may_change_on_resume_and_what_may_not(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.run("trainer.max_steps=4")
    folder = place.only_run()
    before = (folder / "config.yaml").read_text()
    for forbidden in (
        "seed=1",
        "model.n_layers=3",
        "trainer.batch_size=3",
        "task.seq_len=16",
        "trainer/optimizer=adamw",
    ):
        refused = place.run(f"resume={folder}", "trainer.max_steps=8", forbidden, check=False)
        assert refused.returncode == 1
        key = forbidden.split("=")[0].replace("/", ".")
        assert key in refused.stderr
        assert "may not change" in refused.stderr
    assert (folder / "config.yaml").read_text() == before
    finished = place.run(f"resume={folder}", check=False)
    assert finished.returncode == 1
    assert "finished" in finished.stderr
    place.run(f"resume={folder}", "trainer.max_steps=8", "trainer.optimizer.lr=1e-4", "hardware.micro_batch_size=1")
    assert result(folder)["metrics"]["steps"] == 8
    assert [row["step"] for row in read_rows(folder) if "loss" in row] == list(range(1, 9))
    assert read_rows(folder)[-2]["lr"] <= 1e-4
    assert "lr: 0.0001" in (folder / "config.yaml").read_text()


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    place.run("trainer.max_steps=2", f"hydra.run.dir={tmp_path}/here")
    kept = (tmp_path / "here" / "result.json").read_bytes()
    refused = place.run("trainer.max_steps=2", f"hydra.run.dir={tmp_path}/here", check=False)
    assert refused.returncode == 1
    assert "holds a run already" in refused.stderr
    assert (tmp_path / "here" / "result.json").read_bytes() == kept


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A limit on the size of a file, set by the system, stands for the disk: writes beyond it fail."""
    place = Workplace(tmp_path)
    place.run("trainer.max_steps=4")
    folder = place.only_run()
    good = final_weights(folder)
    small = len(good) // 2

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (small, small))

    words = place.words(f"resume={folder}", "trainer.max_steps=8")
    stopped = launch_afresh(*words, cwd=tmp_path, preexec_fn=limit)
    assert stopped.returncode == 1
    assert "could not be written" in stopped.stderr
    assert "step_00000004" in stopped.stderr
    assert [p.name for p in (folder / "checkpoints").glob("step_*")][-1:] == ["step_00000004"]
    assert final_weights(folder) == good
    place.run(f"resume={folder}", "trainer.max_steps=8")
    assert result(folder)["metrics"]["steps"] == 8
