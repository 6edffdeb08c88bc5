"""One readable message where a person made a mistake; the whole traceback where the code did."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

_FULL_ERROR = "HYDRA_FULL_ERROR"
_WANTS_EVERYTHING = os.environ.get(_FULL_ERROR, "0") not in ("", "0")


@contextmanager
def readable_errors(config_folder: Path) -> Iterator[None]:
    """Turn a person's mistakes into one message on stderr and exit status 1; an interruption into status 128 + signal.
    Stands around the task, and around Hydra, which has mistakes of its own to tell.

    With HYDRA_FULL_ERROR=1, mistakes show their traceback, too.

    Args:
        config_folder: `conf/`, where the real keys are looked up for suggestions.
    """
    os.environ[_FULL_ERROR] = "1"  # Hydra then lets exceptions through instead of printing them
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BaseException as failure:
        interrupted = getattr(failure, "signal_number", None)
        if interrupted is not None:
            print(f"\n{failure}. Checkpoint: {failure.checkpoint}", file=sys.stderr)  # type: ignore[attr-defined]
            print("Continue with the same command and resume=auto", file=sys.stderr)
            raise SystemExit(128 + interrupted) from None
        if _WANTS_EVERYTHING or not isinstance(failure, Exception) or not _is_mistake(failure):
            raise
        print(f"Error: {_message(failure, config_folder)}", file=sys.stderr)
        raise SystemExit(1) from None


def _is_mistake(failure: Exception) -> bool:
    """Whether the message alone says what to do. Our own errors do; so do Hydra's on overrides."""
    if isinstance(failure, HydraException | OmegaConfBaseException | FileNotFoundError):
        return True
    ours = type(failure).__module__.startswith("modern_llm")
    return ours or (isinstance(failure, ValueError) and _raised_by_us(failure))


def _raised_by_us(failure: Exception) -> bool:
    trace = failure.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and f"{os.sep}modern_llm{os.sep}" in trace.tb_frame.f_code.co_filename


def _message(failure: Exception, config_folder: Path) -> str:
    chain: list[BaseException] = [failure]  # a resolver's own error comes wrapped, and so do Hydra's
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    own = next((c for c in chain if type(c).__module__.startswith("modern_llm")), None)
    if own is not None:
        return str(own)
    text = next((str(c).strip() for c in chain if str(c).strip()), repr(failure))
    unknown = re.search(r"Could not override '([^']+)'", " ".join(map(str, chain)))
    if unknown is None:
        # OmegaConf puts a frame around what a resolver says.
        return re.sub(r"^\w+ raised while resolving interpolation: (.*?)\n\s+full_key:.*$", r"\1", text, flags=re.S)
    from modern_llm.config.instantiate import nearest

    key = unknown.group(1).split("@")[0]
    known = _known_keys(config_folder)
    leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    suggestion = nearest(key, known)
    if suggestion.startswith("Known") and key.rsplit(".", 1)[-1] in leaf:
        suggestion = f"Did you mean {leaf[key.rsplit('.', 1)[-1]]!r}?"
    if suggestion.startswith("Known"):
        suggestion = "`python launch.py --cfg job` lists all keys."
    return f"{key}: there is no such key. {suggestion}"


def _known_keys(config_folder: Path) -> list[str]:
    """Every key of the default configuration and of the groups that the command line chooses."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from modern_llm.config.differences import leaves

    chosen = [a for a in sys.argv[1:] if re.match(r"^[a-z]+(/[a-z_]+)*=[\w/]+$", a) and _is_group(a, config_folder)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_folder), version_base="1.3"):
        try:
            plain: Any = OmegaConf.to_container(compose("config", overrides=chosen), resolve=False)
        except Exception:  # the choices may be the mistake
            plain = OmegaConf.to_container(compose("config"), resolve=False)
    keys = [key for key, _ in leaves(plain)]
    parents = {key.rsplit(".", n)[0] for key in keys for n in range(1, key.count(".") + 1)}
    groups = {p.relative_to(config_folder).as_posix() for p in config_folder.rglob("*") if p.is_dir()}
    return sorted({*keys, *parents, *groups})


def _is_group(override: str, config_folder: Path) -> bool:
    return (config_folder / override.split("=")[0]).is_dir()
