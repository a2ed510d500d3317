"""Write the whole training state, each rank its share, one tensor at a time.

The tensors of one parameter are assembled over the data-parallel ranks (a collective) and written by one of them, in
turn, so a rank never holds more than a file's worth. torch.distributed.checkpoint would write safetensors too, but it
wants every assembled tensor of the state at once on every rank, which undoes ZeRO.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.sharding import Shard, sharded_parameters
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import (
    optimizer_steps,
    read_scaler,
    read_tensor,
    tensor_kinds,
)

FILE_BYTES = 1 << 30


class SaveError(RuntimeError):
    """A checkpoint could not be written; the ones before it are untouched."""


@dataclass
class _RankFiles:
    """One rank's files of a checkpoint while they are written."""

    folder: Path
    rank: int
    records: dict[str, layout.FileRecord] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    pending: dict[str, Tensor] = field(default_factory=dict)
    pending_bytes: int = 0

    def add(self, key: str, shard: Shard, block: Tensor) -> None:
        """Queue a block; a full file is written at once."""
        block = block.detach().to("cpu", torch.float32, copy=True).contiguous()
        name = layout.tensors_name(self.rank, len(self.records))
        place = {"dim": shard.dim, "start": shard.start, "stop": shard.stop}
        self.blocks[key] = {"file": name, "shape": list(shard.shape), **place}
        self.pending[key] = block
        self.pending_bytes += block.numel() * 4
        if self.pending_bytes >= FILE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write and fsync the queued blocks."""
        if not self.pending:
            return
        name = layout.tensors_name(self.rank, len(self.records))
        save_file(self.pending, self.folder / name)
        layout.sync(self.folder / name)
        self.records[name] = layout.file_record(self.folder / name)
        self.pending, self.pending_bytes = {}, 0

    def finish(self) -> None:
        """Write the rank's index, which also carries its files' records to rank 0."""
        self.flush()
        files = {name: {"bytes": record.size, "sha256": record.sha256} for name, record in self.records.items()}
        layout.write_json(self.folder / layout.index_name(self.rank), {"files": files, "blocks": self.blocks})


def save_checkpoint(
    engine: Engine,
    directory: Path,
    state: TrainingState,
    keep_last: int,
) -> Path:
    """Save after `state.progress.step` steps. Collective.

    Args:
        engine: the weights and the optimizer.
        directory: the run's checkpoint directory, which every rank sees.
        state: of the run; what the engine counts is put in here.
        keep_last: complete checkpoints to keep.

    Returns:
        The checkpoint's folder.

    Raises:
        SaveError: on every rank, if any could not write its part.
    """
    groups = engine.groups
    final = layout.step_folder(directory, state.progress.step)
    writing = final.with_name(final.name + layout.WRITING)
    with _together(groups, final):
        if groups.rank == 0:
            shutil.rmtree(writing, ignore_errors=True)
            writing.mkdir(parents=True)
    files = _RankFiles(writing, groups.rank)
    blocks = _own_blocks(engine)
    with _together(groups, final) as failure:
        for key, shard, block in blocks:
            if failure.error is None:  # a full disk must not keep this rank out of the others' collectives
                with failure.caught():
                    files.add(key, shard, block)
        with failure.caught():
            files.finish()
    with _together(groups, final):
        if groups.rank == 0:
            whole = replace(state, optimizer_steps=optimizer_steps(engine), loss_scaler=read_scaler(engine))
            layout.write_json(writing / layout.STATE, whole.to_json())
            layout.commit(writing, final, _all_records(writing, groups.world_size), keep_last)
    return final


def _own_blocks(engine: Engine) -> Iterator[tuple[str, Shard, Tensor]]:
    """The blocks that this rank writes. All data-parallel ranks walk through all of them: reading is collective."""
    groups = engine.groups
    for i, (shard, param) in enumerate(sharded_parameters(engine.ds.module)):
        elsewhere = getattr(param, "ds_pipe_replicated", False)  # a tied copy: the first stage writes it
        if elsewhere or (shard.dim is None and groups.tp_rank > 0):
            continue
        for kind in tensor_kinds(engine):
            value = read_tensor(engine, param, kind)
            if i % groups.dp_size == groups.dp_rank:
                yield f"{kind}/{shard.name}", shard, value


def _all_records(writing: Path, world_size: int) -> dict[str, layout.FileRecord]:
    records = {}
    for rank in range(world_size):
        name = layout.index_name(rank)
        records[name] = layout.file_record(writing / name)
        for file, entry in layout.read_checkpoint_json(writing, name)["files"].items():
            records[file] = layout.FileRecord(entry["bytes"], entry["sha256"])
    records[layout.STATE] = layout.file_record(writing / layout.STATE)
    return records


class _together:  # noqa: N801 - reads as a statement
    """Run a block on every rank; if it fails on any, raise SaveError on all, after all have come through."""

    def __init__(self, groups: Groups, final: Path) -> None:
        self.groups, self.final = groups, final
        self.error: OSError | None = None

    def __enter__(self) -> _together:
        return self

    def caught(self) -> _caught:
        """Keep an OSError of the inner block for the end."""
        return _caught(self)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if error is not None and not isinstance(error, OSError):
            return False
        self.error = error or self.error
        failed = torch.tensor([self.error is not None], dtype=torch.int32, device=self.groups.device)
        dist.all_reduce(failed, op=dist.ReduceOp.MAX)
        if int(failed):
            why = f": {self.error}" if self.error else " by another rank"
            raise SaveError(f"checkpoint {self.final} could not be written{why}. Earlier ones are untouched.")
        return True


class _caught:  # noqa: N801
    def __init__(self, outer: _together) -> None:
        self.outer = outer

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, OSError):
            self.outer.error = error
            return True
        return False
