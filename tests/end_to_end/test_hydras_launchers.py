"""Hydra's own launchers run the same sweeps: the same table, and taken up again."""

from __future__ import annotations

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import Workplace, launch, launch_afresh
from test_sweep import only_sweep, table

# Jobs that finish, and one whose loss is no number from its second step on.
SWEPT = ["-m", "trainer.max_steps=6", "trainer.max_bad_steps=1", "trainer.optimizer.lr=0.01,1e30", "seed=1,2"]
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local", "hydra.sweeper.max_batch_size=2"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"],
}


def afresh(place: Workplace, *words: str) -> subprocess.CompletedProcess[str]:
    """In an interpreter of its own: workers begin with what their command's interpreter was started with."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled"}
    return launch_afresh(*place.words(*words), cwd=place.folder, timeout=300, env=environment)


def is_installed(name: str) -> bool:
    try:
        return find_spec(f"hydra_plugins.hydra_{name}_launcher") is not None
    except ModuleNotFoundError:  # no plug-in at all is
        return False


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The table of the sweep, one job after the other."""
    place = Workplace(tmp_path_factory.mktemp("alone"))
    assert place.run(*SWEPT, check=False).returncode == 1
    return table(only_sweep(place))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_same_table_and_only_what_failed_again(name: str, tmp_path: Path, alone: list[dict[str, str]]) -> None:
    if not is_installed(name):
        pytest.skip(f"the extra `{name}` is not installed")
    place = Workplace(tmp_path)
    done = afresh(place, *SWEPT, *LAUNCHERS[name])
    assert done.returncode == 1, done.stderr[-3000:]
    folder = only_sweep(place)
    assert table(folder) == alone
    assert [row["status"].split(":")[0] for row in alone] == ["finished", "finished", "failed", "failed"]
    before = {n: (folder / n / "result.json").stat().st_mtime_ns for n in ("0", "1")}
    # Cut off, a job goes on; what is finished stays.
    (folder / "1" / "result.json").unlink()
    again = afresh(place, *SWEPT, *LAUNCHERS[name], "resume=auto")
    assert again.returncode == 1, again.stderr[-3000:]
    assert only_sweep(place) == folder
    assert table(folder) == alone
    assert (folder / "0" / "result.json").stat().st_mtime_ns == before["0"]
    assert (folder / "1" / "result.json").stat().st_mtime_ns > before["1"]
    sittings = [(folder / str(n) / "sittings.jsonl").read_text().count("\n") for n in range(4)]
    assert sittings == [1, 2, 2, 2]


def test_a_launcher_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    missing = next((name for name in LAUNCHERS if not is_installed(name)), None)
    if missing is None:
        pytest.skip("every launcher is installed here")
    done = launch("-m", LAUNCHERS[missing][0], "seed=1,2", cwd=tmp_path)
    assert done.returncode == 1
    assert f"its package is not installed. Run `pip install modern-llm[{missing}]`." in done.stderr
