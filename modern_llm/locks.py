"""One writer a folder: an advisory lock that the kernel frees when its process ends, however it ends."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has other locks; there, folders go without
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_OPEN = b"open\n"
_held: dict[Path, int] = {}
_found_open: set[Path] = set()


class FolderInUseError(RuntimeError):
    """Another process writes to the folder; the message says which."""


def hold(folder: Path) -> None:
    """Make this process the only one that writes to a folder, until it ends. Asked for again, it is held already.

    Raises:
        FolderInUseError: another one does.
        OSError: nothing can be written there.
    """
    place = folder.resolve()
    if place in _held or fcntl is None:
        return
    # Whoever made the folder may have put a link or a pipe there.
    lock = os.open(place / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    try:
        if not _taken(lock, fcntl.LOCK_EX):
            raise FolderInUseError(f"{folder}: is written to by {_who(place)}. Wait for it, or stop it first.")
        is_open = _OPEN in os.pread(lock, 1000, 0)
        _write(lock, is_open)
    except BaseException:
        os.close(lock)
        raise
    _held[place] = lock
    if is_open:
        _found_open.add(place)


def release(folder: Path) -> None:
    """Let go of a folder that this process holds and is done with; others may then write there."""
    place = folder.resolve()
    lock = _held.pop(place, None)
    if lock is not None:
        os.close(lock)
    _found_open.discard(place)


@contextmanager
def alone(path: Path, waiting: Callable[[str], None] = lambda who: None) -> Iterator[None]:
    """Be the only process that is inside for the same path; others wait for their turn.

    Args:
        path: a file of no other use, which is gone afterwards; its folder is there.
        waiting: told once who is inside, such as `process 12 on host`.
    """
    if fcntl is None:
        yield
        return
    lock = _entered(path, waiting)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is freed: whoever waits sees that this file is no longer the one
        os.close(lock)


def _entered(path: Path, waiting: Callable[[str], None]) -> int:
    """A file that this process has locked, and that still stands at its path."""
    told = False
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            if not _taken(lock, fcntl.LOCK_EX):
                if not told:
                    waiting(os.pread(lock, 200, 0).decode(errors="replace").split("\n")[0] or "another process")
                    told = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.fstat(lock).st_ino == path.stat().st_ino:
                    _write(lock, False)
                    return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _write(lock: int, is_open: bool) -> None:
    os.ftruncate(lock, 0)
    text = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
    os.pwrite(lock, text + (_OPEN if is_open else b""), 0)


def _taken(lock: int, how: int) -> bool:
    """Take a lock; whoever looks holds it for a moment, so that it is tried more than once."""
    for attempt in range(20):
        try:
            fcntl.flock(lock, how | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.005 * (attempt < 19))
        except OSError:  # a file system without locks
            return True
    return False


def _who(folder: Path) -> str:
    with suppress(OSError):
        return _read(folder).decode(errors="replace").split("\n")[0] or "another process"
    return "another process"


def holder(folder: Path) -> str | None:
    """Which other process writes to a folder, such as `process 12 on host`; None: nobody."""
    place = folder.resolve()
    if place in _held or fcntl is None:
        return None
    try:
        lock = os.open(place / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return _who(place)
    except OSError:
        return None
    finally:
        os.close(lock)


def begin(folder: Path) -> None:
    """Note that work begins in a folder that this process holds: until `end`, it is not done."""
    _note(folder, True)


def end(folder: Path) -> None:
    """Note that the work in a folder came to its end; the folder stays held."""
    _note(folder, False)


def _note(folder: Path, is_open: bool) -> None:
    lock = _held.get(folder.resolve())
    if lock is not None:
        _write(lock, is_open)


def found_open(folder: Path) -> bool:
    """Whether the work in a folder had not come to its end when this process took hold of it."""
    return folder.resolve() in _found_open


def left_open(folder: Path) -> bool:
    """Whether the process that last worked in a folder ended before its work did, as one that is killed does."""
    if fcntl is None or folder.resolve() in _held:
        return False
    try:
        return _OPEN in _read(folder) and holder(folder) is None
    except OSError:
        return False


def _read(folder: Path) -> bytes:
    lock = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.read(lock, 200)
    finally:
        os.close(lock)
