"""Several processes that train as one: stopped, resumed by other numbers of them, and what is refused."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from commands import ROOT, Command, Workplace, final_weights, free_port, read_rows, result, wait_for

LENGTH = ["trainer.max_steps=60", "trainer.save_every=7", "trainer.eval_every=20", "trainer.log_every=1"]
# What AdamW does is rounded alike by any number of processes for longer than what Muon does.
WHOLE = [*LENGTH, "model.dropout=0.1", "trainer.batch_size=8", "hardware.micro_batch_size=3", "trainer/optimizer=adamw",
         "trainer.optimizer.lr=1e-3"]  # fmt: skip
ONE_OF_TWO = ["hardware.sharding=optimizer"]


def start(place: Workplace, count: int, *overrides: str, port: int | None = None,
          other: Sequence[str] = ()) -> list[Command]:  # fmt: skip
    """So many processes, with what torchrun tells them; the last one with `other` overrides besides."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port or free_port()), "WORLD_SIZE": str(count)}
    last = [*overrides, *other]
    return [
        Command(*place.words(*(last if rank == count - 1 else overrides)), cwd=place.folder,
                env={**where, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(count)})
        for rank in range(count)
    ]  # fmt: skip


def run(place: Workplace, count: int, *overrides: str) -> list[Command]:
    """Processes that came to their end."""
    done = [command.wait() for command in start(place, count, *overrides)]
    assert [command.returncode for command in done] == [0] * count, [command.stderr[-2000:] for command in done]
    return done


def stopped(place: Workplace, count: int, step: int, how: signal.Signals, whom: Sequence[int], *overrides: str) -> Path:
    """Start processes and send some of them a signal at a step: the folder of the run."""
    commands = start(place, count, *overrides)
    found: list[Path] = []

    def far_enough() -> bool:
        found[:] = [p.parent for p in place.outputs.glob("*/*/metrics.jsonl")]
        return bool(found) and any(row["step"] >= step for row in read_rows(found[0]))

    wait_for(far_enough, lambda: all(c.returncode is None for c in commands), lambda: commands[0].stderr[-2000:])
    for rank in whom:
        commands[rank].send(how)
    place.ended = [command.wait(60) for command in commands]  # type: ignore[attr-defined]
    assert not (found[0] / "result.json").exists()
    return found[0]


def assert_alike(ours: Path, theirs: Path) -> None:
    """The same rows and figures, but for rounding, which tests/training/test_many_processes.py holds down."""
    for mine, other in zip(read_rows(ours), read_rows(theirs), strict=True):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert value == pytest.approx(other[name], rel=1e-3 if name == "grad_norm" else 1e-4, abs=1e-6), name
    measured, expected = result(ours)["metrics"], result(theirs)["metrics"]
    for name in measured:
        if "loss" in name or "perplexity" in name:
            assert measured[name] == pytest.approx(expected[name], rel=1e-4), name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = Workplace(tmp_path_factory.mktemp("alone"))
    place.run(*WHOLE)
    return place.only_run()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from made_models import make_mirror

    return make_mirror(tmp_path_factory.mktemp("mirror"))


def test_one_writes_and_speaks_for_all(tmp_path: Path, alone: Path) -> None:
    place = Workplace(tmp_path)
    first, *others = run(place, 3, *WHOLE)
    assert_alike(place.only_run(), alone)
    assert "validation_token_perplexity" in first.stdout
    assert [other.stdout + other.stderr for other in others] == ["", ""]
    assert result(place.only_run())["runtime"]["processes"] == 3


def test_a_killed_run_goes_on_with_another_number_of_processes(tmp_path: Path, alone: Path) -> None:
    place = Workplace(tmp_path)
    folder = stopped(place, 2, 16, signal.SIGKILL, (0, 1), *WHOLE, *ONE_OF_TWO)
    assert stopped(place, 3, 37, signal.SIGKILL, (0, 1, 2), *WHOLE, *ONE_OF_TWO, "resume=auto") == folder
    place.run(*WHOLE, "resume=auto", "hardware.sharding=none")
    assert place.only_run() == folder
    assert_alike(folder, alone)


def test_weights_in_pieces_are_whole_in_checkpoints_and_in_the_end(tmp_path: Path, alone: Path) -> None:
    place, full = Workplace(tmp_path), [*WHOLE, "hardware.sharding=full", "hardware.activation_checkpointing=true"]
    folder = stopped(place, 2, 16, signal.SIGKILL, (0, 1), *full)
    assert stopped(place, 1, 33, signal.SIGKILL, (0,), *WHOLE, "resume=auto", "hardware.sharding=none") == folder
    run(place, 4, *full, "resume=auto")
    assert_alike(folder, alone)


@pytest.mark.parametrize("sharding", ["optimizer", "full"])
def test_large_checkpoints_are_written_and_read_in_shares(tmp_path: Path, sharding: str) -> None:
    """By two processes, then by four, at last by one; and measured by one."""
    ours = [*WHOLE, "trainer/average=ema", "trainer.average.decay=0.8"]
    shares = [*ours, f"hardware.sharding={sharding}", "hardware.whole_checkpoint_gb=0"]
    (tmp_path / "whole").mkdir()
    (tmp_path / "shares").mkdir()
    whole, place = Workplace(tmp_path / "whole"), Workplace(tmp_path / "shares")
    whole.run(*ours)
    folder = stopped(place, 2, 23, signal.SIGKILL, (0, 1), *shares)
    assert stopped(place, 4, 43, signal.SIGKILL, (0, 1, 2, 3), *shares, "resume=auto") == folder
    saved = folder / "checkpoints" / "step_00000040"
    assert [path.is_dir() for path in (saved / "model", saved / "trainer")] == [True, True]
    assert len(list((saved / "model").iterdir())) == 4
    words = ["task=text", f"task.data.train=[{place.folder}/text.txt]", "task.train=false", "model=from_run",
             f"model.path={saved}", f"paths.outputs={tmp_path / 'measured'}", "hardware=cpu"]  # fmt: skip
    done = Command(*words, cwd=tmp_path).wait()
    assert done.returncode == 0, done.stderr[-2000:]
    (measured,) = (tmp_path / "measured").glob("*/*/result.json")
    at_40 = next(row for row in read_rows(folder) if row["step"] == 40 and "validation_loss" in row)
    assert result(measured.parent)["metrics"]["validation_loss"] == pytest.approx(at_40["validation_loss"], rel=1e-4)

    place.run(*ours, "resume=auto", "hardware.sharding=none")
    assert_alike(folder, whole.only_run())


def test_a_killed_run_of_two_is_bitwise_that_of_two(tmp_path: Path) -> None:
    folders, muon = [], [*WHOLE, *ONE_OF_TWO, "trainer/optimizer=normuon"]
    muon.remove("trainer/optimizer=adamw")
    for name in ("left alone", "killed"):
        (tmp_path / name).mkdir()
        place = Workplace(tmp_path / name)
        if name == "killed":
            stopped(place, 2, 25, signal.SIGKILL, (0, 1), *muon)
        run(place, 2, *muon, "resume=auto")
        folders.append(place.only_run())
    assert final_weights(folders[0]) == final_weights(folders[1])
    assert read_rows(folders[0]) == read_rows(folders[1])


@pytest.mark.parametrize("whom", [0, 1])
def test_one_that_is_killed_ends_the_others_with_a_message(tmp_path: Path, alone: Path, whom: int) -> None:
    place = Workplace(tmp_path)
    folder = stopped(place, 2, 20, signal.SIGKILL, (whom,), *WHOLE)
    left = place.ended[1 - whom]  # type: ignore[attr-defined]
    assert left.returncode == 1
    assert "another of the 2 processes is gone" in left.stderr
    assert "Traceback" not in left.stderr
    assert not (folder / "failure.txt").exists()
    run(place, 2, *WHOLE, "resume=auto")
    assert_alike(folder, alone)
    assert not list(folder.glob("**/*.part"))


def test_a_signal_to_any_ends_all_with_one_checkpoint(tmp_path: Path, alone: Path) -> None:
    place = Workplace(tmp_path)
    folder = stopped(place, 3, 20, signal.SIGTERM, (1,), *WHOLE)
    assert [command.returncode for command in place.ended] == [128 + signal.SIGTERM] * 3  # type: ignore[attr-defined]
    assert "resume=auto" in place.ended[0].stderr  # type: ignore[attr-defined]
    newest = max((folder / "checkpoints").glob("step_*")).name
    assert int(newest.removeprefix("step_")) == read_rows(folder)[-1]["step"]
    run(place, 2, *WHOLE, "resume=auto")
    assert_alike(folder, alone)


TASKS = {
    "LoRA on a whole architecture": ["task=sst2", "model=gpt2", "task.data.source.held_out=8"],
    "every weight": ["task=sst2", "model=gpt2", "model/lora=off", "task.data.source.held_out=8"],
    "encoder and decoder": [
        "task=gsm8k",
        "model=t5_small",
        "task.data.source.held_out=4",
        "task.data.max_new_tokens=4",
    ],
    "instructions": ["task=sft", "task/data=arithmetic_instructions", "model=pretrained", "model.name=made/llama"],
    "preferences": ["task=dpo", "task/data=arithmetic_preferences", "model=pretrained", "model.name=made/llama"],
    "rewards": [
        "task=rl",
        "task/data=arithmetic_problems",
        "model=pretrained",
        "model.name=made/llama",
        "task/reward=format",
        "task.reward.pattern='[0-9]'",
        "task.asking.max_new_tokens=12",
        "model@task.teacher=gpt2",
        "task.policy_loss.teacher=0.1",
    ],
    "verifier": [
        "task=verifier",
        "task/data=arithmetic_solutions",
        "model=verifier",
        "model.d_model=32",
        "model.n_layers=2",
    ],
}


@pytest.mark.parametrize("words", TASKS.values(), ids=TASKS)
def test_every_task_that_trains_is_one_task_for_any_number(tmp_path: Path, made: Path, words: list[str]) -> None:
    common = ["hardware=cpu", "hardware.precision=fp32", "hardware.num_threads=1", "trainer.batch_size=4",
              "trainer.max_steps=4", "trainer.eval_every=2", "trainer/optimizer=adamw",
              "trainer.log_every=1", "trainer.optimizer.lr=1e-4", f"paths.cache={tmp_path / 'cache'}"]  # fmt: skip
    draws = "task=rl" in words  # each process a part of the answers, so each has the whole policy
    # Weights in pieces are the hardest; what is kept whole is tested beside it for a decoder.
    common += ["hardware.eval_batch_size=8"] if draws else ["task.max_tokens=64"]
    folders = []
    for count, sharding in ((1, "none"), (2, "optimizer" if draws else "full")):
        folder = tmp_path / f"{count} {sharding}"
        folder.mkdir()
        own = [f"hydra.run.dir='{folder}'", f"hardware.sharding={sharding}"]
        env = {"MODERN_LLM_MIRROR": str(made), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = [{"RANK": str(r), "LOCAL_RANK": str(r), "WORLD_SIZE": str(count)} for r in range(count)]
        commands = [Command(*words, *common, *own, cwd=folder, env=env | place) for place in places]
        for command in commands:
            assert command.wait().returncode == 0, command.stderr[-3000:]
        folders.append(folder)
    assert_alike(folders[1], folders[0])


def test_what_is_refused(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    (tmp_path / "other.txt").write_text("Another text, line after line.\n" * 400)
    cases = {
        "fewer rows than there are processes": (3, ["trainer.batch_size=2"], []),
        "the command or the code of process 1 of 2": (2, [], ["trainer.optimizer.lr=0.5"]),
        "is not written as Hydra reads it": (2, ["trainer.optimizer.lr=(("], []),
        "process 1 of 2: trainer.optimizer.lr=((": (2, [], ["trainer.optimizer.lr=(("]),
        "a sweep is a command of one process": (2, ["-m", "seed=1,2"], []),
    }
    for message, (count, overrides, other) in cases.items():
        commands = [command.wait(60) for command in start(place, count, *overrides, other=other)]
        assert all(command.returncode == 1 for command in commands)
        told = [command.stderr for command in commands if command.stderr]
        assert len(told) == 1, told
        assert message in told[0]
        assert "Traceback" not in told[0]
    alone = ["task=doctor", "hardware=cpu", f"paths.outputs={place.outputs}"]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    commands = [Command(*alone, env=world | {"RANK": str(rank)}) for rank in (0, 1)]
    assert "is a task for one process" in "".join(command.wait(60).stderr for command in commands)
    refused = place.run("hardware.sharding=optimizer", check=False)
    assert "there is one process" in refused.stderr
    assert not list(place.outputs.glob("*/*"))


def test_a_taken_port_is_told_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Workplace(tmp_path)
    monkeypatch.setenv("MODERN_LLM_SECONDS_TO_MEET", "10")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        begin = time.monotonic()
        commands = [command.wait(90) for command in start(place, 2, port=taken.getsockname()[1])]
        assert time.monotonic() - begin < 60
    assert all(command.returncode == 1 for command in commands)
    assert any("do not find each other" in command.stderr for command in commands)
    assert any("MODERN_LLM_SECONDS_TO_MEET" in command.stderr for command in commands)


def test_torchrun_starts_them(tmp_path: Path) -> None:
    place = Workplace(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(ROOT / "launch.py"), *place.words("trainer.max_steps=20", "hardware.precision=auto")]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert result(place.only_run())["runtime"]["processes"] == 2
