"""The state of every global random generator, which a checkpoint keeps."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import torch


def read() -> dict[str, Any]:
    """State of every global random generator."""
    numpy_state = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps(numpy_state, default=lambda array: array.tolist()),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state |= {f"cuda{i}": torch.cuda.get_rng_state(i) for i in range(torch.cuda.device_count())}
    return state


def restore(state: dict[str, Any]) -> None:
    """Set every global random generator as `read` found it; those of devices that are not here are left
    out."""
    version, internal, gauss = json.loads(state["python"])
    random.setstate((version, tuple(internal), gauss))
    numpy_state = json.loads(state["numpy"])
    numpy_state["state"]["key"] = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state)
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            if f"cuda{i}" in state:
                torch.cuda.set_rng_state(state[f"cuda{i}"], i)
