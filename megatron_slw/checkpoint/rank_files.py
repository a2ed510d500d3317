"""One rank's part of a checkpoint: which blocks it writes, and its files while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.tensor_file import write_tensors
from megatron_slw.parallel.sharding import Shard, sharded_parameters
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import read_tensor, tensor_kinds

FILE_BYTES = 1 << 30


class Block(NamedTuple):
    """A part of a logical tensor."""

    key: str
    """weight/NAME, exp_avg/NAME, ..."""
    shard: Shard
    value: Tensor


def own_blocks(engine: Engine) -> Iterator[Block]:
    """The blocks that this rank writes. All data-parallel ranks walk through all of them: reading is collective."""
    for shard, param, is_own in _parameters(engine):
        for kind in tensor_kinds(engine):
            value = read_tensor(engine, param, kind)
            if is_own:
                yield Block(f"{kind}/{shard.name}", shard, value)


def own_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of `own_blocks`, without communication."""
    return {
        f"{kind}/{shard.name}": shard.local_shape
        for shard, _, is_own in _parameters(engine)
        if is_own
        for kind in tensor_kinds(engine)
    }


def _parameters(engine: Engine) -> Iterator[tuple[Shard, nn.Parameter, bool]]:
    """Those that this rank and its data-parallel peers save, and whether it is this one that writes it.

    Each goes to the peer that has the least so far, so none has more than its share and one parameter.
    """
    groups = engine.groups
    loads = [0] * groups.dp_size
    for shard, param in sharded_parameters(engine.ds.module):
        elsewhere = getattr(param, "ds_pipe_replicated", False)  # a tied copy: the first stage writes it
        if not elsewhere and (shard.dim is not None or groups.tp_rank == 0):
            owner = loads.index(min(loads))
            loads[owner] += prod(shard.local_shape)
            yield shard, param, owner == groups.dp_rank


@dataclass
class RankFiles:
    """One rank's files of a checkpoint while they are written."""

    folder: Path
    rank: int
    records: dict[str, layout.FileRecord] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)
    pending_bytes: int = 0

    def add(self, block: Block) -> None:
        """Queue a block, which must stay as it is until `finish`; a full file is written at once.

        Raises:
            OSError: the file cannot be written.
        """
        value = block.value.detach().to("cpu", torch.float32)
        name = layout.tensors_name(self.rank, len(self.records))
        place = {"dim": block.shard.dim, "start": block.shard.start, "stop": block.shard.stop}
        self.blocks[block.key] = {"file": name, "shape": list(block.shard.shape), **place}
        self.pending[block.key] = value
        self.pending_bytes += value.numel() * 4
        if self.pending_bytes >= FILE_BYTES:
            self._flush()

    def finish(self) -> None:
        """Write what is queued and the rank's index, which also carries its files' records to rank 0."""
        self._flush()
        files = {name: {"bytes": record.size, "sha256": record.sha256} for name, record in self.records.items()}
        layout.write_json(self.folder / layout.index_name(self.rank), {"files": files, "blocks": self.blocks})

    def _flush(self) -> None:
        if self.pending:
            name = layout.tensors_name(self.rank, len(self.records))
            self.records[name] = write_tensors(self.folder / name, self.pending)
            self.pending, self.pending_bytes = {}, 0


def all_records(writing: Path, world_size: int) -> dict[str, layout.FileRecord]:
    """For the manifest: what the indices of all ranks say, the indices themselves and state.json."""
    records = {}
    for rank in range(world_size):
        name = layout.index_name(rank)
        records[name] = layout.file_record(writing / name)
        for file, entry in layout.read_checkpoint_json(writing, name)["files"].items():
            records[file] = layout.FileRecord(entry["bytes"], entry["sha256"])
    records[layout.STATE] = layout.file_record(writing / layout.STATE)
    return records
