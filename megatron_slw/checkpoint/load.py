"""Read a checkpoint of any layout into any other: a reader of logical tensors, and the resume of a run.

Nothing is believed: names, sizes, hashes, shapes, dtypes and coverage are checked before a weight is touched. No file
is unpickled.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.config.errors import ConfigError, reason
from megatron_slw.parallel.sharding import Shard
from megatron_slw.progress import whole_number


@dataclass(frozen=True)
class Block:
    """A part of a logical tensor and the file it lies in; `dim` None is the whole."""

    file: str
    shape: tuple[int, ...]
    dim: int | None
    start: int
    stop: int


class Checkpoint:
    """A complete checkpoint on disk.

    Raises:
        ConfigError: it is not complete, or its JSON is not what this program writes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ConfigError(f"checkpoint {self.path} is not a directory.")
        self.records = layout.read_manifest(self.path)
        try:
            self.state = TrainingState.from_json(layout.read_checkpoint_json(self.path, layout.STATE))
        except ConfigError as error:
            raise ConfigError(f"{self} {layout.STATE}: {error}") from None
        self.progress, self.plan, self.config = self.state.progress, self.state.plan, self.state.config
        self.stability, self.growth, self.pacing = self.state.stability, self.state.growth, self.state.pacing
        self.optimizer_steps, self.loss_scaler = self.state.optimizer_steps, self.state.loss_scaler
        self.blocks = self._read_index()

    def __str__(self) -> str:
        return f"checkpoint {self.path.name}:"

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Compare the SHA-256 of every `shares`-th file, from number `share` on; ConfigError names the first bad."""
        layout.verify(self.path, self.records, sorted(self.records)[share::shares])

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The logical shape of each tensor, by key (`weight/NAME`, `exp_avg/NAME`, ...)."""
        return {key: blocks[0].shape for key, blocks in self.blocks.items()}

    def tensor(self, key: str, shard: Shard | None = None) -> Tensor:
        """A logical fp32 tensor, or the part of it that `shard` describes.

        Raises:
            ConfigError: it is not in the checkpoint, has another shape, or its file is not what the index says.
        """
        if key not in self.blocks:
            raise ConfigError(f"{self} {key} is not in it. Was it made by another model or optimizer?")
        blocks = self.blocks[key]
        shape = blocks[0].shape
        if shard is None:
            shard = Shard(key, shape)
        if shape != shard.shape:
            raise ConfigError(f"{self} {key} has shape {list(shape)}, but the model needs {list(shard.shape)}.")
        if blocks[0].dim is None:
            start, stop = (shard.start, shard.stop) if shard.dim is not None else (0, 0)
            return self._read(key, blocks[0], shard.dim, start, stop)
        dim = blocks[0].dim
        first, last = (shard.start, shard.stop) if shard.dim == dim else (0, shape[dim])
        parts = []
        for block in blocks:
            start, stop = max(first, block.start), min(last, block.stop)
            if start < stop:
                parts.append(self._read(key, block, dim, start - block.start, stop - block.start))
        whole = torch.cat(parts, dim) if parts else torch.empty(shard.local_shape)
        if shard.dim is not None and shard.dim != dim:
            whole = whole.narrow(shard.dim, shard.start, shard.stop - shard.start)
        return whole

    def _read(self, key: str, block: Block, dim: int | None, start: int, stop: int) -> Tensor:
        """Rows [start, stop) along `dim` of a block, without reading the rest of its file."""
        expected = list(block.shape)
        if block.dim is not None:
            expected[block.dim] = block.stop - block.start
        try:
            with safe_open(self.path / block.file, framework="pt") as file:
                piece = file.get_slice(key)
                found = f"{piece.get_dtype()} {list(piece.get_shape())}"
                if found != f"F32 {expected}":
                    raise ConfigError(f"{self} {block.file}: {key} is {found}, but the index says F32 {expected}.")
                if dim is None:
                    return file.get_tensor(key)
                return piece[(slice(None),) * dim + (slice(start, stop),)]
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{self} {block.file} cannot be read: {reason(error)}.") from None

    def _read_index(self) -> dict[str, list[Block]]:
        names = sorted(name for name in self.records if name.startswith("index-"))
        found: dict[str, list[Block]] = {}
        for name in names:
            content = layout.read_checkpoint_json(self.path, name).get("blocks")
            if not isinstance(content, dict):
                raise ConfigError(f"{self} {name}: blocks must be an object.")
            for key, entry in content.items():
                found.setdefault(key, []).append(self._block(name, key, entry))
        for key, blocks in found.items():
            blocks.sort(key=lambda block: block.start)
            self._check_cover(key, blocks)
        return found

    def _block(self, name: str, key: str, entry: Any) -> Block:
        where = f"{self} {name}: {key}"
        if not isinstance(entry, dict) or set(entry) != {"file", "shape", "dim", "start", "stop"}:
            raise ConfigError(f"{where} must have file, shape, dim, start and stop, but is {entry!r:.80}.")
        if entry["file"] not in self.records:
            raise ConfigError(f"{where} lies in {entry['file']!r:.80}, which {layout.MANIFEST} does not list.")
        if not isinstance(entry["shape"], list) or not 1 <= len(entry["shape"]) <= 4:
            raise ConfigError(f"{where} has shape {entry['shape']!r:.80}.")
        shape = tuple(whole_number(size, f"{where} shape", least=1) for size in entry["shape"])
        if entry["dim"] is None:
            return Block(entry["file"], shape, None, 0, 0)
        dim, start, stop = (whole_number(entry[field], f"{where} {field}") for field in ("dim", "start", "stop"))
        if dim >= len(shape) or not start < stop <= shape[dim]:
            raise ConfigError(f"{where} has part {start}:{stop} of dimension {dim}, but shape {list(shape)}.")
        return Block(entry["file"], shape, dim, start, stop)

    def _check_cover(self, key: str, blocks: list[Block]) -> None:
        first = blocks[0]
        if any((b.shape, b.dim) != (first.shape, first.dim) for b in blocks):
            raise ConfigError(f"{self} the blocks of {key} disagree on its shape or on how it is cut.")
        if first.dim is None:
            covered = len(blocks) == 1
        else:
            bounds = [0, *(b.stop for b in blocks)]
            covered = [b.start for b in blocks] == bounds[:-1] and bounds[-1] == first.shape[first.dim]
        if not covered:
            raise ConfigError(f"{self} the blocks of {key} do not cover it once; is an index file missing?")
