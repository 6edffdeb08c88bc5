"""Tensors that lie on several processes in pieces of their first dimension, and plain ones, treated alike."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from modern_llm.processes import world


def is_cut(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`, of which this process has a piece."""
    loaded = sys.modules.get("torch.distributed.tensor")  # where it is not loaded, no tensor is one
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def piece_of(tensor: Any) -> Tensor:
    """What this process has of a tensor: a view of it."""
    return tensor.to_local() if is_cut(tensor) else tensor


def whole(tensor: Any) -> Tensor:
    """All of a tensor. Every process calls it, in one order."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def laid(piece: Tensor, like: Any) -> Tensor:
    """What lies on the processes as a tensor does, of the piece in each: no data are moved."""
    if not is_cut(like):
        return piece
    from torch.distributed.tensor import DTensor

    place, shape, stride = like.device_mesh, like.shape, like.stride()
    return DTensor.from_local(piece, place, like.placements, shape=shape, stride=stride)


def joined(piece: Tensor, like: Any) -> Tensor:
    """All of what lies on the processes as a tensor does, from the piece in each."""
    return whole(laid(piece, like))


def cut(full: Tensor, like: Tensor) -> Tensor:
    """The piece of a tensor that this process has where another one is cut."""
    if is_cut(full):
        return piece_of(full)
    if not is_cut(like):
        return full
    pieces = torch.chunk(full, world().count, dim=0)
    return pieces[world().rank] if world().rank < len(pieces) else full[:0]
