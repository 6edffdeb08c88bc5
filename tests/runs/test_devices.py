"""Jobs side by side: places, devices, what is shown of them, and how a signal ends them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import ROOT, wait_for

from modern_llm.runs.devices import names_of_gpus, places

# Runs jobs, each of which is this program again: it notes what it sees, waits for `go` where it is told to, and ends.
_PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

words = [word.split("=", 1) for word in sys.argv[1:]]
told = {key: value.strip("'") for key, value in words}

def note(folder, event):
    with (folder.parent / "events.jsonl").open("a") as log:
        log.write(json.dumps({"job": folder.name, "event": event}) + "\\n")

if "hydra.run.dir" in told:
    folder, stops = Path(told["hydra.run.dir"]), []
    def stop(number, frame):
        note(folder, f"signal {number}")
        stops.append(number)
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    (folder / "environment.json").write_text(json.dumps({name: os.environ.get(name) for name in names}))
    note(folder, "start")
    print("a result")
    print("a word of progress", file=sys.stderr, flush=True)
    while told["do"] == "wait" and not stops and not (folder.parent / "go").exists():
        time.sleep(0.01)
    if stops:
        time.sleep(0.3)  # the checkpoint; a second signal would be noted
    note(folder, "end")
    sys.exit(128 + stops[0] if stops else 3 if told["do"] == "fail" else 0)

from modern_llm.runs.devices import Place, run_side_by_side
from modern_llm.runs.commands import SweepInterrupted

top = Path(told["top"])
jobs = [[f"do={word}"] for word in told["jobs"].split(",")]
(top / "sweep.json").write_text(json.dumps({"jobs": jobs}))
where = [Place(f"GPU {gpu}", {"CUDA_VISIBLE_DEVICES": gpu, "OMP_NUM_THREADS": "2"}) for gpu in told["gpus"].split(",")]
try:
    run_side_by_side(enumerate(jobs), where, top)
except SweepInterrupted as stopped:
    sys.exit(128 + stopped.signal_number)
"""


def drive(top: Path, jobs: str, gpus: str = "3,5", stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    program = top / "program.py"
    program.write_text(_PROGRAM)
    command = [sys.executable, str(program), f"top={top}", f"jobs={jobs}", f"gpus={gpus}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=stderr, env=environment, cwd=top)


def events(top: Path, event: str) -> list[str]:
    log = top / "events.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [row["job"] for row in rows if row["event"].startswith(event)]


def test_each_job_sees_its_own_device_and_a_failed_one_frees_its_place(tmp_path: Path) -> None:
    driver = drive(tmp_path, "wait,fail,fail,quick")
    wait_for(lambda: "3" in events(tmp_path, "end"), lambda: driver.poll() is None)
    assert events(tmp_path, "end") == ["1", "2", "3"]  # one after the other in the second place, beside job 0
    (tmp_path / "go").touch()
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 0
    seen = [json.loads((tmp_path / str(n) / "environment.json").read_text()) for n in range(4)]
    assert [job["CUDA_VISIBLE_DEVICES"] for job in seen] == ["3", "5", "5", "5"]
    assert {job["OMP_NUM_THREADS"] for job in seen} == {"2"}
    assert (tmp_path / "1" / "failure.txt").read_text() == "a word of progress\n"
    assert not (tmp_path / "3" / "failure.txt").exists()
    # What a job says is told line by line; its results are in its file.
    assert out == ""
    assert "job 2 starts on GPU 5: do=fail\n" in err
    assert "job 2 | a word of progress\n" in err
    assert "job 2 failed: a word of progress" in err
    assert "a result" not in err
    assert sorted((tmp_path / "0" / "output.txt").read_text().splitlines()) == ["a result", "a word of progress"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_job_once_and_starts_no_other(how: signal.Signals, tmp_path: Path) -> None:
    driver = drive(tmp_path, "wait,wait,wait")
    wait_for(lambda: len(events(tmp_path, "start")) == 2, lambda: driver.poll() is None)
    driver.send_signal(how)
    driver.communicate(timeout=60)
    assert driver.returncode == 128 + how
    assert sorted(events(tmp_path, f"signal {how.value}")) == ["0", "1"]
    assert sorted(events(tmp_path, "end")) == ["0", "1"]
    assert not (tmp_path / "2").exists()
    assert not list(tmp_path.glob("*/failure.txt"))


def test_a_terminal_shows_a_line_for_each_job_and_how_it_ended(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    driver = drive(tmp_path, "wait,fail", stderr=theirs)
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while block := os.read(ours, 4096):
                shown.append(block)
        except OSError:  # the other side is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    said = b"a word of progress"
    wait_for(lambda: b"".join(shown).count(said) > 2, lambda: driver.poll() is None)
    (tmp_path / "go").touch()
    driver.communicate(timeout=60)
    reader.join(60)
    os.close(ours)
    text = b"".join(shown).decode()
    assert "job 0  GPU 3  do=wait  a word of progress" in text
    assert "job 1 failed: a word of progress" in text
    assert "job 0 |" not in text


def test_gpus_keep_the_names_that_were_made_visible() -> None:
    assert names_of_gpus(3, None) == ["0", "1", "2"]
    assert names_of_gpus(2, "5, GPU-8f") == ["5", "GPU-8f"]
    assert names_of_gpus(1, "5,9") == ["5"]  # CUDA sees none behind one that is not there
    assert names_of_gpus(0, "") == []


def test_places() -> None:
    def of(jobs: int | None, gpus: list[str], cores: int = 16, **environment: str) -> list[dict[str, str]]:
        return [place.environment for place in places(jobs, gpus, cores, environment)]

    def threads(number: int) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(number), "RAYON_NUM_THREADS": str(number)}

    assert of(None, []) == [threads(16)]
    assert of(4, []) == [threads(4)] * 4
    assert of(3, [], cores=2) == [threads(1)] * 3
    assert of(None, ["2", "GPU-8f"]) == [threads(8) | {"CUDA_VISIBLE_DEVICES": gpu} for gpu in ("2", "GPU-8f")]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in of(4, ["0", "1"])] == ["0", "1", "0", "1"]
    assert of(1, ["6", "7"]) == [threads(16) | {"CUDA_VISIBLE_DEVICES": "6"}]
    given = of(2, [], OMP_NUM_THREADS="3")
    assert given == [{"RAYON_NUM_THREADS": "8"}] * 2
    with pytest.raises(ValueError, match=r"hydra\.launcher\.jobs=0: must be at least 1"):
        of(0, [])
