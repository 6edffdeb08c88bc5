"""What commands under test know as their interpreter: a job is forked by `tests/warm.py`, anything else is run by the
real one.

It stands for the job: it hands signals on, ends as the job does, and the job dies with it.
"""

import json
import os
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

HERE = Path(__file__).resolve().parent


def is_job(words: list[str]) -> bool:
    """Whether `python …` is the `launch.py`, and finds the modules, that the server knows."""
    known = json.loads((HERE / "server.json").read_text())
    return words[:1] == [known["launch"]] and os.environ.get("PYTHONPATH") == known["path"]


def number_in(path: Path) -> int:
    """Once it is there."""
    while not path.exists():
        time.sleep(0.002)
    return int(path.read_text())


def main(words: list[str]) -> int:
    """Ask for a job and wait for it: its exit status, as `subprocess` says it."""
    folder = Path(tempfile.mkdtemp(dir=HERE, prefix="job_"))
    request = {
        "typed": words,
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "streams": [f"/proc/{os.getpid()}/fd/{number}" for number in range(3)],
        "asks": os.getpid(),
    }
    (folder / "request.json").write_text(json.dumps(request))
    handed_on = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, handed_on)
    with (HERE / "requests").open("w") as requests:
        requests.write(f"{folder}\n")
    pid = number_in(folder / "pid")

    def hand_on(number: int, frame: object) -> None:
        # A terminal interrupts a whole group, which is the job's session here. A job that has ended gets no signal.
        with suppress(ProcessLookupError):
            (os.killpg if number == signal.SIGINT else os.kill)(pid, number)

    for number in handed_on:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, handed_on)
    return number_in(folder / "status")


if __name__ == "__main__":
    if not is_job(sys.argv[1:]):
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    status = main(sys.argv[1:])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)
