"""A copy of a rank's part of the training state in host memory, from which a save is written while training goes on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from megatron_slw.checkpoint.rank_files import Block, own_blocks, own_shapes
from megatron_slw.train.engine import Engine


class Snapshot:
    """Room for one copy, taken at once and kept for the run: fresh pages cost more than the copy.

    It holds 4 bytes for each number that this rank writes: fp32 weights and moments of its tensor-parallel shard of its
    pipeline stage, shared out over the data-parallel ranks. `estimate.snapshot_bytes` says so beforehand.
    """

    def __init__(self, engine: Engine) -> None:
        pinned = engine.groups.device.type == "cuda"
        self._room: dict[str, Tensor] = {}
        for key, shape in own_shapes(engine).items():
            self._room[key] = torch.zeros(shape, dtype=torch.float32, pin_memory=pinned)  # zeros touch each page

    @property
    def bytes(self) -> int:
        """Of the copy."""
        return sum(tensor.nbytes for tensor in self._room.values())

    def take(self, engine: Engine) -> list[Block]:
        """Copy the state of this moment over the copy before; collective over data-parallel ranks."""
        blocks = []
        for key, shard, value in own_blocks(engine):
            copy(value.detach(), self._room[key])
            blocks.append(Block(key, shard, self._room[key]))
        return blocks


def copy(value: Tensor, room: Tensor) -> None:
    """Into host memory. From host memory NumPy takes half of torch's time: it writes past the caches."""
    if value.device.type == "cpu" and value.dtype == room.dtype:
        np.copyto(room.numpy(), value.numpy())
    else:
        room.copy_(value)
