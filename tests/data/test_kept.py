"""What is made once and kept, asked for by several processes at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import ROOT, wait_for

# Making takes a while, and tells that it began; `go` lets it end.
_ASKS = """
import sys, time
from pathlib import Path
from modern_llm.data.kept import kept

top = Path(sys.argv[1])

def make(folder):
    with (top / "made.txt").open("a") as log:
        log.write("began\\n")
    while not (top / "go").exists():
        time.sleep(0.01)
    (folder / "content").write_text("whole")

print((kept(top / "cache" / "thing", make) / "content").read_text())
"""


def ask(top: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ASKS, str(top)], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def began(top: Path) -> int:
    return (top / "made.txt").read_text().count("began") if (top / "made.txt").exists() else 0


def test_several_processes_make_it_once(tmp_path: Path) -> None:
    asking = [ask(tmp_path) for _ in range(3)]
    wait_for(lambda: began(tmp_path) > 0, lambda: asking[0].poll() is None)
    time.sleep(0.5)  # the others come to it meanwhile
    (tmp_path / "go").touch()
    ended = [process.communicate(timeout=60) for process in asking]
    assert [out for out, _ in ended] == ["whole\n"] * 3
    assert began(tmp_path) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["thing"]


def test_who_waits_makes_it_where_the_maker_is_killed(tmp_path: Path) -> None:
    first = ask(tmp_path)
    wait_for(lambda: began(tmp_path) == 1, lambda: first.poll() is None)
    second = ask(tmp_path)
    assert second.stderr is not None
    assert f"waiting for process {first.pid} on " in second.stderr.readline()
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    (tmp_path / "go").touch()
    out, _ = second.communicate(timeout=60)
    assert out == "whole\n"
    assert began(tmp_path) == 2
    assert (tmp_path / "cache" / "thing" / "content").read_text() == "whole"
