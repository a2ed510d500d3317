"""Write one safetensors file from tensors in memory, hashed as it is written: no second copy, no second reading.

`os.write`, SHA-256 and fsync all let other threads of the process run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_slw.checkpoint import format as layout

Shapes = Mapping[str, tuple[int, ...]]
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class FileKind:
    """What the files of a folder have in common."""

    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, str] | None = None

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Of one tensor in a file."""
        return self.dtype.itemsize * prod(shape)


CHECKPOINT = FileKind()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> layout.FileRecord:
    """Write and fsync fp32 CPU tensors in their order.

    Raises:
        OSError: the file cannot be written.
    """
    digest = hashlib.sha256()
    with open(path, "wb", buffering=0) as file:
        size = write_bytes(file.fileno(), header({key: tuple(t.shape) for key, t in tensors.items()}), digest)
        for tensor in tensors.values():
            size += write_bytes(file.fileno(), tensor_bytes(tensor), digest)
        os.fsync(file.fileno())
    return layout.FileRecord(size, digest.hexdigest())


def header(shapes: Shapes, kind: FileKind = CHECKPOINT) -> memoryview:
    """The beginning of a safetensors file of tensors in this order."""
    entries: dict[str, Any] = {} if kind.metadata is None else {"__metadata__": dict(kind.metadata)}
    first = 0
    for key, shape in shapes.items():
        last = first + kind.bytes_of(shape)
        entries[key] = {"dtype": DTYPES[kind.dtype], "shape": list(shape), "data_offsets": [first, last]}
        first = last
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return memoryview(len(text).to_bytes(8, "little") + text)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The elements of a CPU tensor, without a copy where they lie in a row."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def write_bytes(handle: int, data: memoryview, digest: Any) -> int:
    """Write all of it in pieces that stay in the cache while they are hashed; returns its size."""
    for first in range(0, len(data), PIECE_BYTES):
        piece = data[first : first + PIECE_BYTES]
        digest.update(piece)
        while piece:
            piece = piece[os.write(handle, piece) :]
    return len(data)
