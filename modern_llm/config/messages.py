"""One readable message where a person made a mistake; the whole traceback where the code did."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from modern_llm.config.choices import CONFIG_FOLDER, is_group
from modern_llm.config.names_of_the_field import key_for
from modern_llm.config.renamed import CHOICES, key_now
from modern_llm.processes import FailedElsewhereError, is_lost, lost_in_words, may_speak_of, world

FULL_ERROR = "HYDRA_FULL_ERROR"
# What the person asked for; within the process the variable is always set.
WANTS_EVERYTHING = os.environ.get(FULL_ERROR, "0") not in ("", "0")
_PACKAGE = Path(__file__).resolve().parents[1]
# Packages that a person installs when they are wanted.
_OPTIONAL = ("wandb", "mlflow", "tensorboard", "gguf", "lm_eval", "trl", "optuna")
# Choices that come with a package, and the extra that installs it.
_EXTRAS = {
    "hydra/launcher/joblib": "joblib",
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray",
}
# What the system refuses a person, and the way out.
_SYSTEM = {
    errno.EACCES: "Give a place that you may write to",
    errno.EPERM: "Give a place that you may write to",
    errno.EROFS: "Give a place that you may write to",
    errno.ENOTDIR: "A file stands where a folder should be; give another place",
    errno.EISDIR: "A folder stands where a file should be; give another place",
    errno.ENAMETOOLONG: "Shorten it",
    errno.ENOSPC: "Free disk space, or give another place with paths.outputs or paths.cache",
    errno.EDQUOT: "Free disk space, or give another place with paths.outputs or paths.cache",
    errno.EFBIG: "Free disk space, or give another place with paths.outputs or paths.cache",
}


class Stopped(BaseException):
    """A signal ended the command where nothing waits for the end of a step.

    Args:
        signal_number: the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")
        self.signal_number, self.checkpoint = signal_number, None


@contextmanager
def readable_errors() -> Iterator[None]:
    """Turn a person's mistakes into one message on stderr and exit status 1; an interruption into status 128 + signal.
    Stands around Hydra, which has mistakes of its own to tell.

    With HYDRA_FULL_ERROR=1, mistakes show their traceback, too.
    """
    os.environ[FULL_ERROR] = "1"  # Hydra then lets exceptions through instead of printing them
    before = signal.signal(signal.SIGTERM, partial(_stop, os.getpid()))
    try:
        yield
    except KeyboardInterrupt:
        print("\nstopped by SIGINT", file=sys.stderr)
        raise SystemExit(130) from None
    except BaseException as failure:
        interrupted = getattr(failure, "signal_number", None)
        if interrupted is not None:
            checkpoint = getattr(failure, "checkpoint", None)
            if world().is_first:
                print(f"\n{failure}" + (f". Checkpoint: {checkpoint}" if checkpoint else ""), file=sys.stderr)
                print("Continue with the same command and resume=auto", file=sys.stderr)
            raise SystemExit(128 + interrupted) from None
        if not isinstance(failure, Exception):
            raise
        if not _is_told_here(failure):
            raise SystemExit(1) from None
        who = "" if world().is_first else f"process {world().rank} of {world().count}: "
        if is_lost(failure):
            print(f"Error: {who}{lost_in_words(failure)}", file=sys.stderr)
        elif WANTS_EVERYTHING or not is_mistake(failure):
            print(who, end="", file=sys.stderr)
            raise
        else:
            print(f"Error: {who}{in_words(failure)}", file=sys.stderr)
        raise SystemExit(1) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_told_here(failure: Exception) -> bool:
    """Whether this process is the one that tells of a failure."""
    if isinstance(failure, FailedElsewhereError):
        return False
    return may_speak_of("a process is gone" if is_lost(failure) else repr(failure))


def _stop(own: int, number: int, frame: FrameType | None) -> None:
    if os.getpid() != own:  # a worker, which is ended by whoever started it
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    raise Stopped(number)


def is_mistake(failure: BaseException) -> bool:
    """Whether the message alone says what to do. Our own errors do; so do Hydra's on overrides, and what the system
    refuses a person."""
    if isinstance(failure, HydraException | OmegaConfBaseException):
        return True
    if type(failure).__module__.startswith("modern_llm.") or "(os error 28)" in str(failure):
        return True
    if isinstance(failure, OSError):
        # Without a number, somebody wrote the message for a person.
        return failure.errno in _SYSTEM or (failure.errno is None and isinstance(failure, FileNotFoundError))
    if isinstance(failure, ModuleNotFoundError):
        return str(failure.name).split(".")[0] in _OPTIONAL
    return isinstance(failure, ValueError) and (_raised_in(failure, _PACKAGE) or _raised_in(failure, _hydra()))


def _hydra() -> Path:
    import hydra

    return Path(hydra.__file__).resolve().parent


def _raised_in(failure: BaseException, package: Path) -> bool:
    """Whether the code that raised an error is in the folder of a package, and not only somewhere below it."""
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    inside = Path(trace.tb_frame.f_code.co_filename).resolve()
    return inside.is_relative_to(package) and "site-packages" not in inside.relative_to(package).parts


def in_words(failure: BaseException, typed: Sequence[str] | None = None) -> str:
    """What a failure says to the person at the terminal, in one line where that can be.

    Args:
        failure: the error.
        typed: overrides of the command, where it is not the one that runs; None: that one.
    """
    chain: list[BaseException] = [failure]  # a resolver's own error comes wrapped, and so do Hydra's
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    own = next((c for c in chain if type(c).__module__.startswith("modern_llm.")), None)
    if own is not None:
        return str(own)
    told = next((text for c in chain if (text := _of_the_system(c) or _of_hydra(c, typed)) is not None), None)
    if told is not None:
        return told
    text = next((str(c).strip() for c in chain if str(c).strip()), repr(failure))
    # OmegaConf puts a frame around what a resolver says.
    text = re.sub(r"^\w+ raised while resolving interpolation: (.*?)\n\s+full_key:.*$", r"\1", text, flags=re.S)
    return re.sub(r"\n\s*full_key: (\S+)\n\s*object_type=\w+\s*$", r" (\1)", text)


def _of_the_system(failure: BaseException) -> str | None:
    if isinstance(failure, ModuleNotFoundError):
        package = str(failure.name).split(".")[0]
        known = package in _OPTIONAL
        return f"the package {package} is not installed. Run `pip install {package}`." if known else None
    if "(os error 28)" in str(failure):
        return f"{failure}. {_SYSTEM[errno.ENOSPC]}."
    if not isinstance(failure, OSError) or failure.errno not in _SYSTEM:
        return None
    places = "".join(f"{note}: " for note in getattr(failure, "__notes__", []))
    place = str(failure.filename or "a file")
    shown = place if len(place) < 200 else f"{place[:80]}…{place[-40:]}"
    return f"{places}{shown}: {failure.strerror}. {_SYSTEM[failure.errno]}."


def _of_hydra(failure: BaseException, typed: Sequence[str] | None) -> str | None:
    text = str(failure)
    missing = re.search(r"Could not find '([^']+)'", text)
    if missing is not None:
        return _unknown_choice(missing[1], re.findall(r"^\t(\S+)$", text, flags=re.M))
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown is not None:
        group = unknown[1].split("@")[0]
        if group != unknown[1] and is_group(group):
            return f"{unknown[1]}: nothing of {group} stands there yet. Write +{unknown[1]}=… to add it."
        return _unknown_key(group, sys.argv[1:] if typed is None else typed)
    override = getattr(failure, "override", None)
    if override is not None and type(failure).__name__ == "OverrideParseException":
        why = text.strip().splitlines()[0]
        return f"{override}: is not written as Hydra reads it ({why}). Put a text with signs in it between quotes."
    if "ConfigValueError" in type(failure).__name__ or "Missing mandatory value" in text:
        key = re.search(r"full_key: (\S+)", text)
        return f"{key[1]}: {text.splitlines()[0]}" if key else None
    return None


def _unknown_choice(place: str, there: list[str]) -> str:
    from modern_llm.config.instantiate import nearest

    group, _, choice = place.rpartition("/")
    if (extra := _EXTRAS.get(place)) is not None:
        return f"{group}={choice}: its package is not installed. Run `pip install modern-llm[{extra}]`."
    if (now := CHOICES.get(place)) is not None:
        return f"{group}={choice}: is {now} now. Write {now}."
    if not group:
        return (
            f"Could not find {place!r}: there is no such configuration. Look for it with --config-dir or --config-name."
        )
    suggestion = nearest(choice, there)
    choices = "" if suggestion.startswith("Known") else f" Choices: {', '.join(there)}."
    return f"{group}={choice}: Could not find '{place}'. {suggestion}{choices}"


def _unknown_key(key: str, typed: Sequence[str]) -> str:
    from modern_llm.config.instantiate import nearest

    if (now := key_now(key)) is not None:
        return f"{key}: is {now} now. Write {now}=…"
    known = _known_keys(typed)
    # The right name in a wrong place comes first, then a name of the field, then what looks like it.
    leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    last = key.rsplit(".", 1)[-1]
    field = key_for(key)
    if field is not None:
        return f"{key}: there is no such key. It is {field}."
    suggestion = f"Did you mean {leaf[last]!r}?" if last in leaf else nearest(key, known)
    if suggestion.startswith("Known"):
        suggestion = "`python launch.py --cfg job` lists all keys; variables of your own go below vars."
    return f"{key}: there is no such key. {suggestion}"


def _known_keys(typed: Sequence[str]) -> list[str]:
    """Every key of the default configuration and of the groups that a command chooses."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from modern_llm.config.differences import leaves

    chosen = [a for a in typed if re.match(r"^[a-z]+(/[a-z_]+)*=[\w/]+$", a) and is_group(a.split("=")[0])]
    plain: Any = {}
    for overrides in (chosen, []):  # the choices may be the mistake
        with suppress(Exception):
            if GlobalHydra.instance().is_initialized():
                plain = OmegaConf.to_container(compose("config", overrides), resolve=False)
            else:
                with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
                    plain = OmegaConf.to_container(compose("config", overrides), resolve=False)
            break
    keys = [key for key, _ in leaves(plain)]
    parents = {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    groups = {p.relative_to(CONFIG_FOLDER).as_posix() for p in CONFIG_FOLDER.rglob("*") if p.is_dir()}
    return sorted({*keys, *parents, *groups})
