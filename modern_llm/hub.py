"""Where models and data sets are looked for: a local mirror in the hub's own layout, the local cache, the hub.

The mirror holds `models/<owner>/<name>/` and `datasets/<owner>/<name>/`. It is named by `paths.mirror` or the
environment variable MODERN_LLM_MIRROR.
"""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

MIRROR_VARIABLE = "MODERN_LLM_MIRROR"


class MissingSplitError(ValueError):
    """The data set is there and has no such split."""


def _in_mirror(kind: str, name: str, mirror: str | None) -> Path | None:
    root = mirror or os.environ.get(MIRROR_VARIABLE)
    folder = Path(root).expanduser() / kind / name if root else None
    return folder if folder is not None and folder.is_dir() else None


def _not_found(kind: str, name: str, mirror: str | None, cause: Exception) -> FileNotFoundError:
    root = mirror or os.environ.get(MIRROR_VARIABLE)
    first = f"the mirror {Path(root).expanduser() / kind / name}" if root else "no mirror (none is set)"
    reason = str(cause).strip().splitlines()
    return FileNotFoundError(
        f"{name}: not found. Looked in {first}, in the local Hugging Face cache and on the hub "
        f"({type(cause).__name__}: {reason[0] if reason else 'no message'}). "
        f"Connect to the network once, or put it at <mirror>/{kind}/{name} and set paths.mirror=<mirror> "
        f"or {MIRROR_VARIABLE}."
    )


def find_model(name: str, mirror: str | None = None) -> str:
    """A folder with the model or tokenizer `name`.

    Args:
        name: a folder, or a hub name such as `HuggingFaceTB/SmolLM2-135M`.
        mirror: root of the mirror; None: the environment variable.

    Raises:
        FileNotFoundError: nowhere; the message names the places and the way out.
    """
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    folder = _in_mirror("models", name, mirror)
    if folder is not None:
        return str(folder)
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return snapshot_download(name, allow_patterns=wanted, local_files_only=True)
    except Exception:
        try:
            return snapshot_download(name, allow_patterns=wanted)
        except Exception as cause:
            raise _not_found("models", name, mirror, cause) from cause


def found_offline(kind: str, name: str, config: str | None = None, mirror: str | None = None) -> Path | None:
    """Where a model or data set would be read from without the network; None: nowhere. Asks nobody and waits for
    nothing.

    Args:
        kind: `models` or `datasets`.
        name: a folder, or a hub name.
        config: of the data set; `*`: any.
        mirror: root of the mirror; None: the environment variable.

    Raises:
        ValueError, OSError: the mirror has the data set, and not this configuration of it, or no file.
    """
    folder = _in_mirror(kind, name, mirror)
    if kind == "models":
        from huggingface_hub import snapshot_download

        own = Path(name).expanduser()
        if own.is_dir() or folder is not None:
            return own if own.is_dir() else folder
        try:
            return Path(snapshot_download(name, local_files_only=True))
        except Exception:  # what a name that is not there raises differs from version to version
            return None
    import datasets
    from datasets.naming import camelcase_to_snakecase

    if folder is not None:
        if config == "*":
            config = datasets.get_dataset_config_names(str(folder))[0]
        datasets.load_dataset_builder(str(folder), config)  # reads the README and lists the files
        return folder
    owner, _, last = name.rpartition("/")
    cached = "___".join(filter(None, [owner, camelcase_to_snakecase(last)]))
    found = sorted(Path(datasets.config.HF_DATASETS_CACHE).expanduser().glob(f"{cached}/{config or '*'}/*/*"))
    return found[-1] if found else None


@lru_cache
def _content(folder: Path) -> str:
    """Hash of every file in a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def dataset_fingerprint(name: str, config: str | None, split: str, mirror: str | None = None) -> str:
    """Changes when the data set does. In the mirror, found without loading it.

    Raises:
        FileNotFoundError, ValueError: as in `find_dataset`.
    """
    folder = _in_mirror("datasets", name, mirror)
    return _content(folder) if folder is not None else find_dataset(name, config, split, mirror)._fingerprint


def mirrored_dataset(name: str, mirror: str | None = None) -> dict[str, str] | None:
    """`path` and `cache_dir` with which `datasets.load_dataset` reads a data set of the mirror; None: none there.

    Args:
        name: hub name.
        mirror: root of the mirror; None: the environment variable.
    """
    folder = _in_mirror("datasets", name, mirror)
    if folder is None:
        return None
    import datasets

    # `datasets` knows a local folder by its name alone and would serve what another folder once held.
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "mirror" / _content(folder)[:24]
    return {"path": str(folder), "cache_dir": str(cache)}


def dataset_configs(name: str, mirror: str | None = None) -> list[str]:
    """Configurations of a data set.

    Raises:
        FileNotFoundError: it is nowhere.
    """
    import datasets

    folder = _in_mirror("datasets", name, mirror)
    try:
        return list(datasets.get_dataset_config_names(name if folder is None else str(folder)))
    except Exception as cause:
        raise _not_found("datasets", name, mirror, cause) from cause


def file_beside(name: str, file: str, mirror: str | None = None) -> Path | None:
    """A file that stands in a data set's folder in the mirror; None: it is not there."""
    folder = _in_mirror("datasets", name, mirror)
    return folder / file if folder is not None and (folder / file).is_file() else None


def dataset_files(name: str, mirror: str | None = None) -> list[str]:
    """Paths of the files of a data set, sorted.

    Args:
        name: hub name.
        mirror: root of the mirror; None: the environment variable.

    Raises:
        FileNotFoundError: nowhere; the message names the places and the way out.
    """
    folder = _in_mirror("datasets", name, mirror)
    if folder is not None:
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    from huggingface_hub import HfApi

    try:
        return sorted(HfApi().list_repo_files(name, repo_type="dataset"))
    except Exception as cause:
        raise _not_found("datasets", name, mirror, cause) from cause


def dataset_file(name: str, file: str, mirror: str | None = None) -> Path:
    """One file of a data set on this machine: of the mirror, of the local cache, or fetched.

    Raises:
        FileNotFoundError: nowhere.
    """
    folder = _in_mirror("datasets", name, mirror)
    if folder is not None:
        return folder / file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except Exception as cause:
        raise _not_found("datasets", name, mirror, cause) from cause


def find_dataset(name: str, config: str | None, split: str, mirror: str | None = None) -> Dataset:
    """One split of a data set, memory-mapped.

    Args:
        name: hub name such as `Salesforce/wikitext`.
        config: configuration of the data set, or folder in it; or None.
        split: `train`, `validation` or `test`.
        mirror: root of the mirror; None: the environment variable.

    Raises:
        FileNotFoundError: nowhere; the message names the places and the way out.
        MissingSplitError: the data set is there and has no such split.
        ValueError: it is there and has no such configuration.
    """
    import datasets

    datasets.disable_progress_bars()
    mirrored = mirrored_dataset(name, mirror)
    where: dict[str, Any] = mirrored or {"path": name}
    try:
        try:
            return datasets.load_dataset(**where, name=config, split=split)
        except ValueError as unknown:
            if config is None or "BuilderConfig" not in str(unknown):
                raise
            # Some repositories, Anthropic/hh-rlhf among them, keep each part in a folder and declare no configurations.
            try:
                return datasets.load_dataset(**where, data_dir=config, split=split)
            except Exception as cause:
                raise cause if "Unknown split" in str(cause) else unknown from None
    except Exception as cause:
        if "Unknown split" in str(cause):
            raise MissingSplitError(f"{name} ({config}), split {split!r}: {cause}") from cause
        if mirrored is not None or isinstance(cause, ValueError):
            raise ValueError(f"{name} ({config}), split {split!r}: {cause}") from cause
        raise _not_found("datasets", name, mirror, cause) from cause
