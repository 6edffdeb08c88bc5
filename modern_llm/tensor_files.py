"""Safetensors files, hashed while they are written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# The names of the format (github.com/huggingface/safetensors, "Format").
_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


def write(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file, one tensor after the other: those on a device are copied one at a time, and the file
    need not be read again for its hash.

    Args:
        path: of the file.
        tensors: by name, of any device.

    Returns:
        The SHA-256 of the file, in hexadecimal.
    """
    header: dict[str, Any] = {}
    end = 0
    # Larger elements first, so that all are aligned behind a header of whole 8 bytes, as the library has it.
    ordered = sorted(tensors.items(), key=lambda named: (-named[1].element_size(), named[0]))
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    told = json.dumps(header, separators=(",", ":")).encode()
    told += b" " * (-len(told) % 8)
    found = hashlib.sha256()
    with path.open("wb") as file:

        def put(content: Any) -> None:
            file.write(content)
            found.update(content)

        put(len(told).to_bytes(8, "little"))
        put(told)
        for _, tensor in ordered:
            if tensor.numel():
                put(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return found.hexdigest()
