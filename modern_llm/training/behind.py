"""Work that is done behind the training, in order, by one thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread


class Behind:
    """What is handed over is done one after the other, while the caller goes on; a failure comes to light at the next
    `settle`.

    Args:
        overlaps: False: everything is done at once, by the caller.
    """

    def __init__(self, overlaps: bool) -> None:
        self.overlaps = overlaps
        self._work: SimpleQueue[tuple[Callable[[], object], Future[None]]] = SimpleQueue()
        self._begun: list[Future[None]] = []
        self._thread: Thread | None = None

    def do(self, work: Callable[[], object]) -> None:
        """Have it done, behind everything of before; nothing more is done after a failure."""
        if not self.overlaps:
            work()
            return
        if self._thread is None:
            self._thread = Thread(target=self._loop, name="writing behind", daemon=True)
            self._thread.start()
        done: Future[None] = Future()
        self._begun.append(done)
        self._work.put((work, done))

    def _loop(self) -> None:
        failed: BaseException | None = None
        while True:
            work, done = self._work.get()
            try:
                if failed is None:
                    work()
                    done.set_result(None)
                else:
                    done.set_exception(failed)
            except BaseException as failure:
                failed = failure
                done.set_exception(failure)

    def settle(self) -> None:
        """Wait until all is done.

        Raises:
            Exception: what went wrong first.
        """
        begun, self._begun = self._begun, []
        for done in begun:
            done.result()
