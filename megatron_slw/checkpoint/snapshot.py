"""A copy of a rank's part of the training state in host memory, from which a save is written while training goes on."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from megatron_slw.checkpoint.rank_files import Block, own_blocks, own_shapes
from megatron_slw.train.engine import Engine

COPIERS = min(4, os.cpu_count() or 1)
"""Threads that copy: one core moves half of what memory has to give, and the others wait meanwhile."""
WORTH_SHARING = 1 << 20
"""Bytes of a tensor below which a second thread costs more than it saves."""


class Snapshot:
    """Room for one copy, taken at once and kept for the run: fresh pages cost more than the copy.

    It holds 4 bytes for each number that this rank writes: fp32 weights and moments of its tensor-parallel shard of its
    pipeline stage, shared out over the data-parallel ranks. `estimate.snapshot_bytes` says so beforehand.
    """

    def __init__(self, engine: Engine) -> None:
        pinned = engine.groups.device.type == "cuda"
        self._room: dict[str, Tensor] = {}
        self._copiers = ThreadPoolExecutor(COPIERS, thread_name_prefix="snapshot")
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
            copy(value.detach(), self._room[key], self._copiers)
            blocks.append(Block(key, shard, self._room[key]))
        return blocks


def copy(value: Tensor, room: Tensor, copiers: ThreadPoolExecutor) -> None:
    """Into host memory. From host memory NumPy takes half of torch's time: it writes past the caches."""
    if value.device.type != "cpu" or value.dtype != room.dtype:
        room.copy_(value)
        return
    parts = COPIERS if value.nbytes >= WORTH_SHARING and value.is_contiguous() else 1
    if parts == 1:
        np.copyto(room.numpy(), value.numpy())
        return
    sources, targets = (np.array_split(tensor.numpy().reshape(-1), parts) for tensor in (value, room))
    list(copiers.map(np.copyto, targets, sources))
