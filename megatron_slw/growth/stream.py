"""Write a training state tensor by tensor: bounded memory, several files at a time, resumable after a kill.

A file is written under a name that ends in `.part`, fsynced and renamed. So a file without `.part` is whole, and a
second run keeps it; what is in a file depends on the request alone, which `REQUEST` holds, so that files of another
request are never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.tensor_file import CHECKPOINT, FileKind, Shapes, header, tensor_bytes, write_bytes
from megatron_slw.growth.stage import TensorSource

FILE_BYTES = 256 << 20
REQUEST = "request.json"
PART = ".part"

class MemoryBudget:
    """Bytes that the workers may hold together; more than all of it is had by one alone."""

    def __init__(self, limit: int) -> None:
        self.limit, self._held = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Wait for `size` bytes, and give them back at the end."""
        size = min(size, self.limit)
        with self._changed:
            self._changed.wait_for(lambda: self._held + size <= self.limit)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


def split_files(shapes: Shapes, limit: int = FILE_BYTES, kind: FileKind = CHECKPOINT) -> list[list[str]]:
    """The keys of each file, in order: at most `limit` bytes, or one tensor."""
    files: list[list[str]] = []
    used = limit + 1
    for key, shape in shapes.items():
        size = kind.bytes_of(shape)
        if used + size > limit:
            files.append([])
            used = 0
        files[-1].append(key)
        used += size
    return files


def prepare(writing: Path, request: Mapping[str, Any]) -> None:
    """Make the folder, or keep that of an earlier run of the same request; any other's is removed."""
    content = json.dumps(request, sort_keys=True)
    known = writing / REQUEST
    if not (known.is_file() and known.read_text(encoding="utf-8") == content):
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        known.write_text(content, encoding="utf-8")


def write_all(source: TensorSource, writing: Path, workers: int, done: Callable[[str, int], None]) -> None:
    """Write every tensor of `source` and its index into the folder; whole files that are there already are kept.

    Args:
        source: gives the tensors; asked for several at a time.
        writing: from `prepare`.
        workers: files written at a time.
        done: told of each key and its bytes, from the workers' threads.

    Raises:
        OSError: a file cannot be written.
    """
    shapes = source.shapes
    files = split_files(shapes)
    names = [layout.tensors_name(0, part) for part in range(len(files))]
    records = write_files(source, writing, dict(zip(names, files, strict=True)), CHECKPOINT, workers, done)
    blocks = {
        key: {"file": name, "shape": list(shapes[key]), "dim": None, "start": 0, "stop": 0}
        for name, keys in zip(names, files, strict=True)
        for key in keys
    }
    listed = {name: {"bytes": record.size, "sha256": record.sha256} for name, record in records.items()}
    layout.write_json(writing / layout.index_name(0), {"files": listed, "blocks": blocks})


def write_files(
    source: TensorSource,
    writing: Path,
    files: Mapping[str, list[str]],
    kind: FileKind,
    workers: int,
    done: Callable[[str, int], None],
) -> dict[str, layout.FileRecord]:
    """Write the keys of each file, by its name; whole files that are there already are kept.

    Raises:
        OSError: a file cannot be written.
    """
    shapes = source.shapes
    largest = max(4 * prod(shape) for shape in shapes.values())
    budget = MemoryBudget(largest + largest // 2)

    def write(name: str) -> layout.FileRecord:
        path = writing / name
        if path.is_file():
            record = layout.file_record(path)
            for key in files[name]:
                done(key, kind.bytes_of(shapes[key]))
            return record
        return write_file(path, {key: shapes[key] for key in files[name]}, source, budget, done, kind)

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(files, pool.map(write, files), strict=True))


def manifest_records(writing: Path) -> dict[str, layout.FileRecord]:
    """For the manifest of a checkpoint: the files of `write_all`, and state.json."""
    index = layout.index_name(0)
    found = {name: layout.file_record(writing / name) for name in (index, layout.STATE)}
    for name, entry in layout.read_checkpoint_json(writing, index)["files"].items():
        found[name] = layout.FileRecord(entry["bytes"], entry["sha256"])
    return found


def write_file(
    path: Path,
    shapes: Shapes,
    source: TensorSource,
    budget: MemoryBudget,
    done: Callable[[str, int], None],
    kind: FileKind = CHECKPOINT,
) -> layout.FileRecord:
    """One safetensors file, hashed as it is written: size and SHA-256."""
    digest = hashlib.sha256()
    part = path.with_name(path.name + PART)
    with open(part, "wb", buffering=0) as file:
        size = write_bytes(file.fileno(), header(shapes, kind), digest)
        for key, shape in shapes.items():
            with budget.held(4 * prod(shape)):
                tensor = source.tensor(key)
                if tuple(tensor.shape) != shape or tensor.dtype != kind.dtype:
                    found = f"{tensor.dtype} {tuple(tensor.shape)}"
                    raise ValueError(f"{key} is {found}, not {kind.dtype} {shape}")
                size += write_bytes(file.fileno(), tensor_bytes(tensor), digest)
                del tensor
            done(key, kind.bytes_of(shape))
        os.fsync(file.fileno())
    os.rename(part, path)
    layout.sync(path.parent)
    return layout.FileRecord(size, digest.hexdigest())
