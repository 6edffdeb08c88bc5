"""Processes that train together, forked from one that has imported what they run (a `Command`).

    python ranks.py COUNT MODULE ARGUMENT

Each calls `MODULE.main(Path(ARGUMENT))` with torchrun's RANK and LOCAL_RANK; the exit status tells whether all ended
well.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main(count: int, module: str, argument: Path) -> None:
    script, pids = importlib.import_module(module), []
    gc.collect()
    gc.freeze()  # or every training run would look through all that is imported
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            script.main(argument)
            return
        pids.append(pid)
    ends = [os.waitpid(pid, 0)[1] for pid in pids]
    sys.exit(any(ends))


if __name__ == "__main__":
    sys.path[1:1] = [str(HERE.parent), str(HERE)]
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
