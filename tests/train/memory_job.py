"""Runs in a process of the pool: the bytes that the tensors of a real step hold at their peak."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_slw.config.load import resolve
from megatron_slw.config.overrides import apply_overrides
from megatron_slw.data.loader import Blocks
from megatron_slw.ops.library import OPERATORS
from megatron_slw.parallel.groups import build_groups
from megatron_slw.slw.compile import compile_plan
from megatron_slw.train.engine import Engine
from megatron_slw.train.estimate import stage_memory

LENGTH = 128
TREE: dict[str, Any] = {
    "train_batch_size": 8,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
    # DeepSpeed allocates its bucket whole; on a CPU the pages that nothing is written to do not exist.
    "zero_optimization": {"reduce_bucket_size": 100_000},
    "megatron_slw": {
        "model": {
            "num_layers": 3,
            "hidden_size": 128,
            "num_attention_heads": 4,
            "seq_length": LENGTH,
            "vocab_size": 1000,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "data": {"path": "data/text_document"},
        "training": {"train_steps": 2},
        "logging": {"directory": "runs/x"},
    },
}


INSIDE = {
    f"megatron_slw.{name}.default": plain for name, plain in OPERATORS.items() if "linear_cross_entropy" in name
}
"""Operators made of others: a dispatch mode sees what they return, and not the logits that they make and drop."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operators make, from their making to their release."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        plain = INSIDE.get(str(func))
        if plain is None:
            out = func(*args, **(kwargs or {}))
        else:
            with self:
                out = plain(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key, 0)


def measured_and_estimated(changes: dict[str, Any]) -> tuple[int, int]:
    """Peak bytes of the second step on this rank, and what the estimate says of its stage.

    `changes` are dotted overrides of a small configuration.
    """
    world_size = dist.get_world_size()
    tree, _ = apply_overrides(TREE, [f"{name}={json.dumps(value)}" for name, value in changes.items()])
    config = resolve(tree, world_size)
    plan, groups = compile_plan(config), build_groups(config.parallel)
    rows = config.train_batch_size // config.data_parallel_size
    ids = np.arange(rows * (LENGTH + 1)).reshape(rows, LENGTH + 1) % 1000
    blocks = Blocks(ids[:, :-1], ids[:, 1:], starts_BT=ids[:, :-1] % 50 == 0)
    with LiveBytes() as live:
        engine = Engine(config, groups, lambda shard: torch.full(shard.shape, 0.01))
        for step in range(2):  # the moments exist from the second step on
            gc.collect()
            live.peak = live.now
            engine.train_step(blocks, plan.at(step), 1e-3)
    return live.peak, stage_memory(config, groups.pp_rank, LENGTH, device="cpu").total
