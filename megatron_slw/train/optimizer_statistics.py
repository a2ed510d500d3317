"""The size of Adam's second moment: L1 norm and largest element of sqrt(v), by which its steps are divided.

Peaks of the largest element go with loss spikes (arXiv 2108.06084). Names are Megatron-DeepSpeed's; v is the
moving average as Adam keeps it, without bias correction. Every rank reads its own part where it lies: nothing is
assembled.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.parallel.sharding import counts_in_norm, sharded_parameters
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import local_fragment
from megatron_slw.train.optim import state_names

SECOND_MOMENT = "exp_avg_sq"
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 24}
"""Elements whose square roots exist at one time: what a core's cache holds, and 64 MiB."""


class VarianceSqrt(NamedTuple):
    """Of sqrt(v) over all elements of the model, each counted once."""

    l1: float
    abs_max: float


@torch.no_grad()
def variance_sqrt(engine: Engine) -> VarianceSqrt | None:
    """Measure after a step; None for an optimizer without a second moment. Collective, one gather of two numbers.

    Of the tensors that several ranks of a replica hold (LayerNorms under tensor parallelism, the tied table under
    pipelining), the rank counts whose part the gradient norm takes. Under ZeRO a data-parallel rank has its own part
    of each tensor; without, replicas hold the same and share the work.
    """
    if SECOND_MOMENT not in state_names(engine.config.optimizer):
        return None
    groups = engine.groups
    params = (param for _, param in sharded_parameters(engine.ds.module) if counts_in_norm(param))
    fragments = (local_fragment(engine, param, SECOND_MOMENT) for param in params)
    batches = _batches((f for f in fragments if f is not None), CHUNK[groups.device.type])
    if engine.config.zero_stage == 0:
        batches = itertools.islice(batches, groups.dp_rank, None, groups.dp_size)
    mine = _total_and_max(batches, groups.device)
    parts = [torch.empty_like(mine) for _ in range(groups.world_size)]
    dist.all_gather(parts, mine)
    found = torch.stack(parts)
    total, largest = torch.stack([found[:, 0].sum(), found[:, 1].amax()]).tolist()
    return VarianceSqrt(total, math.sqrt(largest))


def _total_and_max(batches: Iterable[list[Tensor]], device: torch.device) -> Tensor:
    """The sum of the square roots and the largest element, in fp64; zeros if there is no element."""
    totals: list[Tensor] = []
    largest: list[Tensor] = []
    for batch in batches:
        totals += [root.sum() for root in torch._foreach_sqrt(batch)]
        largest += torch._foreach_max(batch)
    if not totals:
        return torch.zeros(2, dtype=torch.float64, device=device)
    found = torch.stack([torch.stack(totals).double().sum(), torch.stack(largest).double().amax()])
    return found.to(device)


def _batches(fragments: Iterable[Tensor], limit: int) -> Iterator[list[Tensor]]:
    """All elements, long fragments cut, in lists of at most `limit` elements together."""
    batch: list[Tensor] = []
    free = limit
    for fragment in fragments:
        for piece in fragment.split(limit) if fragment.numel() else ():
            if piece.numel() > free:
                yield batch
                batch, free = [], limit
            batch.append(piece)
            free -= piece.numel()
    if batch:
        yield batch
