"""Tensors of all processes in one folder, each process writing and reading its own share: safetensors, by
torch.distributed.checkpoint. How they are cut is in the files, so that any number of processes reads them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor


def write(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write the tensors of all processes into a folder that is there. Every process calls it.

    Args:
        tensors: by name: pieces as `DTensor`, and whole ones. What several processes have under one name is the same
            in them, and one writes it.
    """
    import torch.distributed.checkpoint as dcp

    with _quiet():
        dcp.save(tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def listed(folder: Path) -> dict[str, Tensor]:
    """What a folder holds: tensors without content, on the meta device.

    Raises:
        ValueError: the files do not say how they are cut.
    """
    import torch.distributed.checkpoint as dcp

    try:
        known: Any = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as cause:
        raise ValueError(f"{folder}: its files are no shares of tensors ({type(cause).__name__}: {cause}).") from cause
    return {name: torch.empty(t.size, dtype=t.properties.dtype, device="meta") for name, t in known.items()}


def read_into(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, whole ones and pieces as `DTensor`, by name: each process its own."""
    import torch.distributed.checkpoint as dcp

    with _quiet():
        dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch warns of what it calls itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
