"""The processes that train together: how many there are, which one this is, and what they agree on.

torchrun starts them and says so in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Without these there is
one, and nothing here costs anything. All walk the same way; the first one alone decides, writes and speaks.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")

_LONGEST_WAIT = timedelta(days=30)  # the first one may download, tokenise and measure meanwhile
_SECONDS_TO_MEET = "MODERN_LLM_SECONDS_TO_MEET"  # the environment variable
_SECONDS_BETWEEN_LOOKS = 0.02
_FAILED = "failed"
_store: Any = None
_is_alone = False  # the others were not found
_turns = 0


class ProcessesError(ValueError):
    """Processes that cannot train together; the message says why."""


class FailedElsewhereError(RuntimeError):
    """Another process failed and tells why."""


@dataclass(frozen=True)
class World:
    """Where a process stands among those that train together.

    Attributes:
        rank: number of this one, from 0.
        count: how many there are.
        local_rank: number of this one on its machine.
        local_count: how many there are on its machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this one decides, writes and speaks."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """The rows of a batch that this one computes: as many as the others, or one more."""
        return slice(rows * self.rank // self.count, rows * (self.rank + 1) // self.count)


def world() -> World:
    """This process among the others.

    Raises:
        ProcessesError: the environment says one thing and another.
    """
    return World() if _stands_alone else _world_of_environment()


_stands_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process counts as the only one: for what is only planned."""
    global _stands_alone
    before, _stands_alone = _stands_alone, True
    try:
        yield
    finally:
        _stands_alone = before


@cache
def _world_of_environment() -> World:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    texts = {name: os.environ.get(name, "") for name in names}
    if not texts["WORLD_SIZE"] or not texts["RANK"]:
        return World()
    try:
        rank, count = int(texts["RANK"]), int(texts["WORLD_SIZE"])
        found = World(rank, count, int(texts["LOCAL_RANK"] or rank), int(texts["LOCAL_WORLD_SIZE"] or count))
    except ValueError:
        found = World(-1)
    if not (0 <= found.rank < found.count and 0 <= found.local_rank < found.local_count):
        told = " ".join(f"{name}={text}" for name, text in texts.items())
        raise ProcessesError(f"{told}: is no place among processes. Start them with torchrun, or unset these.")
    return found


def quiet_unless_first() -> None:
    """Leave the terminal to the first process; another's errors still reach it."""
    if not world().is_first:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends
        warnings.simplefilter("ignore")


# -- agreement -------------------------------------------------------------------------------------------------------


def store() -> Any:
    """Where all processes read and write small texts: a `torch.distributed.Store`.

    Raises:
        ProcessesError: the processes do not find each other.
    """
    global _store
    if _store is None:
        import torch.distributed as dist

        _store = dist.PrefixStore("modern_llm", _rendezvous())
    return _store


def _seconds_to_meet() -> float:
    """How long processes wait for each other at the start."""
    told = os.environ.get(_SECONDS_TO_MEET, "40")
    try:
        seconds = float(told)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise ProcessesError(f"{_SECONDS_TO_MEET}={told!r}: must be a number of seconds above 0. Leave it out for 40.")
    return seconds


def _rendezvous() -> Any:
    """The store that all processes share, in a thread: torch waits forever for a stranger who took the port."""
    import torch.distributed as dist

    found: list[Any] = []
    seconds = _seconds_to_meet()

    def meet() -> None:
        try:
            found.append(next(dist.rendezvous("env://", timeout=timedelta(seconds=seconds)))[0])
        except (RuntimeError, ValueError) as fault:  # torch has no class of its own for a port that is taken
            found.append(fault)

    thread = Thread(target=meet, daemon=True)
    thread.start()
    thread.join(seconds + 5)
    why = str(found[0]).splitlines()[0] if found else f"no answer in {seconds:g} s"
    if not found or isinstance(found[0], Exception):
        global _is_alone
        _is_alone = True
        where = f"MASTER_ADDR={os.environ.get('MASTER_ADDR')} MASTER_PORT={os.environ.get('MASTER_PORT')}"
        raise ProcessesError(
            f"{where}: the {world().count} processes do not find each other there ({why}). Start them with torchrun, "
            "and give another --rdzv-endpoint where the port is taken. Where machines start at different times, "
            f"set {_SECONDS_TO_MEET} to more than {seconds:g}."
        )
    found[0].set_timeout(_LONGEST_WAIT)
    return found[0]


def _told(key: str) -> str:
    """What another process wrote, waited for in a way that lets signals through.

    Raises:
        FailedElsewhereError: one has failed, which may be the one that is waited for.
    """
    found = store()
    while not found.check([key]):
        if found.check([_FAILED]) and not found.check([key]):
            raise FailedElsewhereError("another process failed")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return found.get(key).decode()


def _next_key(what: str) -> str:
    """All processes ask the same questions in the same order."""
    global _turns
    _turns += 1
    return f"{what}/{_turns}"


def agreed(make: Callable[[], Any]) -> Any:
    """What the first process makes, plain data, told to all.

    Raises:
        FailedElsewhereError: in the others, where the first one could not make it.
    """
    if world().count == 1:
        return make()
    key = _next_key("agreed")
    if not world().is_first:
        told = json.loads(_told(key))
        if "value" not in told:
            raise FailedElsewhereError("process 0 failed")
        return told["value"]
    try:
        value = make()
    except BaseException:
        store().set(key, "{}")
        raise
    store().set(key, json.dumps({"value": value}))
    return value


def after_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in each process, in the first one before the others: they find made what is made once."""
    if world().count == 1:
        return make()
    made: list[Any] = []
    agreed(lambda: made.append(make()))
    return made[0] if made else make()


def gathered(content: Any) -> list[Any]:
    """Plain data of every process, in the order of their numbers."""
    key = _next_key("gathered")
    store().set(f"{key}/{world().rank}", json.dumps(content))
    return [json.loads(_told(f"{key}/{rank}")) for rank in range(world().count)]


def require_same(what: str, content: Any, remedy: str) -> None:
    """Refuse processes that differ in something.

    Args:
        what: it is, such as "the configuration".
        content: plain data.
        remedy: what to do.

    Raises:
        ProcessesError: in the first process.
        FailedElsewhereError: in the others.
    """
    if world().count == 1:
        return
    digests = gathered(hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest())
    others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    if others and not world().is_first:
        raise FailedElsewhereError("process 0 tells which differ")
    if others:
        raise ProcessesError(
            f"{what} of process{'es' * (len(others) > 1)} {', '.join(others)} of {world().count} is not that of "
            f"process 0. {remedy}"
        )


def may_speak_of(failure: str) -> bool:
    """Whether this process is to tell of a failure: the first one is, and another where the first does not say the
    same."""
    here = world()
    if here.count == 1 or _is_alone:
        return True
    key = f"{_FAILED}/{hashlib.sha256(failure.encode()).hexdigest()}"
    try:
        store().set(_FAILED, "")
        if here.is_first:
            store().add(key, 1)
            return True
        for _ in range(50):  # the first may be a moment behind
            if store().check([key]):
                return False
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        return store().add(key, 1) == 1
    except (RuntimeError, ProcessesError):  # the store is gone with the process that held it
        return True


def is_lost(failure: BaseException) -> bool:
    """Whether a failure only says that another process is gone."""
    if world().count == 1 or not isinstance(failure, RuntimeError):
        return False
    text = str(failure)
    return type(failure).__name__.startswith("Dist") or any(sign in text for sign in ("gloo", "NCCL", "peer"))


def lost_in_words(failure: BaseException) -> str:
    """What to do then."""
    return (
        f"another of the {world().count} processes is gone ({str(failure).splitlines()[0][:150]}). Nothing is "
        "half-written. Start the same command again with resume=auto, with as many processes as you like."
    )


# -- sums --------------------------------------------------------------------------------------------------------------


@cache
def join(device_type: str) -> None:
    """Let tensors of this kind of device be summed over the processes.

    Raises:
        ProcessesError: torch has not what it takes.
    """
    if world().count == 1:
        return
    import atexit

    import torch.distributed as dist

    if device_type not in ("cpu", "cuda"):
        raise ProcessesError(f"hardware.device={device_type!r}: is for one process. Start it without torchrun.")
    if device_type == "cuda" and not dist.is_nccl_available():
        raise ProcessesError("this torch has no NCCL, through which GPUs train together. Install one that has it.")
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.PrefixStore("sums", store()), rank=world().rank,
                            world_size=world().count, timeout=timedelta(hours=1))  # fmt: skip
    atexit.register(dist.destroy_process_group)


def dealt(items: Iterable[T], rank: int, count: int) -> Iterator[tuple[T, bool]]:
    """Every `count`-th item, from number `rank` on, and whether it is really this process's: all get equally many, so
    that none waits for another, and the last ones may be given what is another's, too."""
    hand: list[T] = []
    for item in items:
        hand.append(item)
        if len(hand) == count:
            yield hand[rank], True
            hand.clear()
    if hand:
        yield hand[min(rank, len(hand) - 1)], rank < len(hand)


def summed(tensor: Any) -> Any:
    """A tensor summed over the processes, in place where there are several."""
    if world().count > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor
