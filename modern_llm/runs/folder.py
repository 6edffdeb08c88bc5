"""The folder of a run: which one a command means, made for it alone, and gone again where the command was refused."""

from __future__ import annotations

import atexit
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from modern_llm.config.instantiate import ConfigError
from modern_llm.locks import LOCK, FolderInUseError, hold, holder
from modern_llm.processes import agreed
from modern_llm.runs.resume import settled, unfinished

_LONGEST_NAME = 150
_BEGAN = time.time()
# Folders that this process made, innermost first: none of them stays empty.
_made: list[Path] = []


def run_folder(resume: str | None, outputs: str, name: str, _root_: DictConfig) -> str:
    """What `hydra.run.dir` is: the folder of the run to resume, or a new one. This process holds it.

    Raises:
        ConfigError: `resume` names no run, or one that is going; or no folder can be made.
    """
    require_name(name)
    if resume not in (None, "auto"):
        folder = Path(str(resume)).expanduser()
        if not (folder / "config.yaml").is_file():
            raise ConfigError(
                f"resume={resume}: is not the folder of a run (no config.yaml in it). "
                "Give a folder below outputs/, or resume=auto for the newest unfinished run like this one."
            )
        hold_run(folder)
        return str(folder)
    if resume == "auto":
        for folder in unfinished(Path(outputs).expanduser(), settled(_root_)):
            with suppress(FolderInUseError, OSError):
                hold(folder)
                return str(folder)
    return str(new_folder(Path(outputs).expanduser() / time.strftime("%Y-%m-%d"), name, f"paths.outputs={outputs}"))


def require_name(name: str) -> None:
    """Refuse a name that is none for a folder.

    Raises:
        ConfigError: with what a name may be.
    """
    text = str(name)
    right = text.strip() and text not in (".", "..") and not {*text} & {"/", "\\"} and text.isprintable()
    if not right or len(text.encode()) > _LONGEST_NAME:
        raise ConfigError(
            f"name={text[:60]!r}{'…' if len(text) > 60 else ''}: is no name for a folder. "
            f"Use letters, digits, _ and -, at most {_LONGEST_NAME} of them, and no / or \\."
        )


def new_folder(above: Path, name: str, key: str) -> Path:
    """Make a folder named after the time that is nobody else's, and hold it.

    Args:
        above: the folder around it.
        name: behind the time.
        key: the setting that places it, as typed.

    Raises:
        ConfigError: it cannot be made there.
    """
    base, number = f"{time.strftime('%H-%M-%S')}_{name}", 0
    while True:
        folder = above / (f"{base}_{number}" if number else base)
        try:
            missing = [place for place in folder.parents if not place.exists()]
            above.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            _forget_if_empty([folder, *missing])
            hold(folder)
            return folder
        except FileExistsError:
            number += 1
        except FileNotFoundError as cause:
            if above.is_dir():  # another command took its empty folder away in between
                continue
            raise _unusable(key, cause) from cause
        except OSError as cause:
            raise _unusable(key, cause) from cause


def _unusable(key: str, cause: OSError) -> ConfigError:
    return ConfigError(
        f"{key}: the run's folder cannot be made there ({cause.strerror}: {cause.filename}). "
        "Give a folder that you may write to."
    )


def hold_run(folder: Path) -> None:
    """Hold the folder of a run that is there.

    Raises:
        ConfigError: a run is going in it, or nothing can be written there.
    """
    try:
        hold(folder)
    except FolderInUseError:
        raise ConfigError(
            f"{folder}: a run is going there ({holder(folder)}). Wait for its end, or stop it, before you resume it."
        ) from None
    except OSError as cause:
        raise ConfigError(f"{folder}: cannot be written to ({cause.strerror}). Choose another folder.") from cause


def hold_given(folder: Path) -> None:
    """Hold a folder that was named for a run and may have been made for it a moment ago.

    Raises:
        ConfigError: as in `hold_run`.
    """
    young = _is_young(folder)
    hold_run(folder)
    if young:
        _forget_if_empty([folder])


def _is_young(folder: Path) -> bool:
    """Whether this command made a folder a moment ago."""
    try:
        return folder.stat().st_mtime >= _BEGAN and not any(folder.iterdir())
    except OSError:
        return False


def _forget_if_empty(folders: list[Path]) -> None:
    if not _made:
        atexit.register(_take_away_what_is_empty)
    _made.extend(place.absolute() for place in folders)


def _take_away_what_is_empty() -> None:
    """A command that was refused leaves nothing."""
    for folder in _made:
        with suppress(OSError):
            if [place.name for place in folder.iterdir()] == [LOCK]:
                (folder / LOCK).unlink()
            folder.rmdir()


def register_resolvers() -> None:
    """Make `${run_folder:…}` and `${run_name:…}` known. One folder per process: Hydra asks twice, and time goes on."""
    answers: dict[tuple[str | None, str, str], str] = {}

    def once(resume: str | None, outputs: str, name: str, _root_: DictConfig) -> str:
        key = (resume, outputs, name)
        if key not in answers:
            answers[key] = agreed(lambda: run_folder(resume, outputs, name, _root_))
        return answers[key]

    OmegaConf.register_new_resolver("run_folder", once, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)


def run_name(_root_: DictConfig) -> str:
    """What a run is called unless `name` says it: its task, and its model where the task has one."""
    from hydra.core.hydra_config import HydraConfig

    # A composed job carries Hydra's part; where it was taken off, Hydra keeps it.
    choices: Any = (_root_.hydra if "hydra" in _root_ else HydraConfig.get()).runtime.choices
    return f"{choices.task}_{choices.model}" if "model" in _root_.task else str(choices.task)
