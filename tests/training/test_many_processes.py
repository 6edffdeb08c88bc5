"""What is learned does not depend on how many processes learn it: losses, metrics and weights of 1, 2, 3 and 4."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import loops
import pytest
import torch
from commands import Command, free_port
from filelock import FileLock
from torch import nn

from modern_llm.processes import ProcessesError, World, _world_of_environment, world
from modern_llm.training.optimization.optimizers import AdamW, Muon
from modern_llm.training.parallel.gradients import _buckets
from modern_llm.training.parallel.replicated import _owners
from modern_llm.training.parallel.traffic import Traffic, traffic
from modern_llm.training.settings import Hardware, TrainerSettings

CASES = ("all parts", "AdamW", "experts", "adapters", "preferences")
CLOCKS = {"seconds", "tokens_per_second", "peak_memory_gb", "mfu"}


def start_together(module: str, count: int, argument: Path) -> None:
    """So many processes of a module of this folder, until they are done."""
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    done = Command(str(count), module, str(argument), program=Path(__file__).with_name("ranks.py"), env=env).wait(400)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Rows and weights of a case, trained by so many processes; all cases of a number of them are trained at once, and
    once for all workers of pytest."""
    own = tmp_path_factory.getbasetemp()
    top = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "together"
    top.mkdir(exist_ok=True)

    @cache
    def all_of(count: int) -> Path:
        with FileLock(top / f"{count}.lock"):
            if not (top / f"{count} done").exists():
                start_together("together", count, top / str(count))
                (top / f"{count} done").touch()
        return top / str(count)

    def of(count: int, case: str, sharding: str, dtype: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        folder = all_of(count) / f"{case} {sharding} torch.{dtype}"
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows], torch.load(folder / "weights.pt")

    return of


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("count", "sharding"), [(2, "none"), (2, "optimizer"), (2, "full"), (3, "none"), (4, "optimizer"), (4, "full")]
)
def test_any_number_of_processes_gives_the_same(trained, count, sharding, case):
    """To ten digits in float64, with accumulation, clipping, dropout, rows with unequal numbers of targets, Muon, an
    average of the weights, experts that balance over the whole batch, adapters and preferences."""
    rows, weights = trained(count, case, sharding, "float64")
    expected_rows, expected = trained(1, case, "none", "float64")
    assert len(rows) == len(expected_rows) >= 8
    for row, one in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(one, rel=1e-10, abs=1e-10)
    assert weights.keys() == expected.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sharding", ["none", "optimizer", "full"])
def test_in_fp32_rounding_alone_differs(trained, sharding, case):
    """Muon makes an orthogonal matrix of gradients whose small directions are rounding, so that its weights differ
    more than what they come to."""
    rows, weights = trained(2, case, sharding, "float32")
    expected_rows, expected = trained(1, case, "none", "float32")
    for row, one in zip(rows, expected_rows, strict=True):
        norms = {name: row.pop(name) - one.pop(name) for name in ("grad_norm",) if name in row}
        assert row == pytest.approx(one, rel=1e-5, abs=1e-5)
        assert all(abs(difference) < 1e-2 for difference in norms.values())
    differences = torch.cat([(weight - expected[name]).flatten() for name, weight in weights.items()])
    assert differences.square().mean().sqrt() < (1e-4 if case == "all parts" else 1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_messages_are_as_long_as_foretold(tmp_path, count):
    """Against what torch hands to its network library in a step."""
    start_together("sending", count, tmp_path / "sent.json")
    sent = json.loads((tmp_path / "sent.json").read_text())
    for sharding in ("none", "optimizer", "full"):
        for name, optimizer in {"AdamW": AdamW(), "Muon": Muon()}.items():
            settings = TrainerSettings(max_steps=1, batch_size=12, optimizer=optimizer)
            hardware = Hardware(device="cpu", precision="fp32", micro_batch_size=2, sharding=sharding)
            foretold = traffic(loops.model(**loops.SENDING).config, settings, hardware, count)
            found = sent[f"{sharding} {name}"]
            for kind in ("summed", "scattered", "updated"):
                assert found.get(kind, 0) == pytest.approx(getattr(foretold, kind), rel=0.01, abs=100), (sharding, kind)
            whole = found.get("gathered", 0)
            assert whole == pytest.approx(foretold.micro_batches * foretold.gathered, rel=0.01), sharding


def test_a_batch_hides_its_messages_where_they_take_as_long_as_the_passes():
    """By hand: of 4 processes that send 3 units in a second and compute 6 in one, at 6 a token."""
    own = Traffic(4, summed=4.0)
    assert own.sent == 2 * 4 * 3 / 4
    assert own.tokens_to_hide(6.0, 6.0, 3.0) == pytest.approx(2 * 3 / 2)  # 2 s of messages, 2/3 s a token backwards
    cut = Traffic(4, micro_batches=3, scattered=4.0, gathered=8.0, updated=1.0)
    assert cut.sent == pytest.approx((4 + 3 * 8 + 1) * 3 / 4)
    assert cut.exposed == 0.75
    # 1 s of sums, 2 s of weights: of these one half in each pass; 1 s a token, of which the backward pass takes 2/3.
    assert cut.tokens_to_hide(6.0, 6.0, 3.0) == pytest.approx(3.0)


def test_shares_are_all_rows_once():
    for rows in (8, 9, 13):
        for count in (1, 2, 3, 5, 8):
            shares = [list(range(rows))[World(rank, count).share(rows)] for rank in range(count)]
            assert [row for share in shares for row in share] == list(range(rows))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_wrong_environment_is_told(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    _world_of_environment.cache_clear()
    with pytest.raises(ProcessesError, match=r"RANK=3 WORLD_SIZE=2.*torchrun"):
        world()
    monkeypatch.undo()
    _world_of_environment.cache_clear()
    assert world() == World()


def test_buckets_hold_every_parameter_once_and_the_last_first():
    parameters = [nn.Parameter(torch.empty(3_000_000)) for _ in range(17)] + [nn.Parameter(torch.empty(2).double())]
    buckets = _buckets(parameters)
    assert [p for bucket in buckets for p in bucket.parameters] == parameters[::-1]
    assert [len(bucket.parameters) for bucket in buckets] == [1, 3, 3, 3, 3, 3, 2]  # up to 25 MB
    assert len(_buckets([nn.Parameter(torch.empty(100_000)) for _ in range(40)])) == 8  # of a smaller model an eighth
    assert len(_buckets([nn.Parameter(torch.empty(1000)) for _ in range(40)])) == 1


def test_owners_have_equal_work():
    costs = [float(c) for c in torch.randint(1, 100, (200,), generator=torch.Generator().manual_seed(0))]
    for count in (2, 3, 7):
        owners = _owners(costs, count)
        loads = [sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(count)]
        assert max(loads) - min(loads) <= max(costs)
