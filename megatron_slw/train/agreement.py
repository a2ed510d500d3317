"""One number of each rank, known to all: what a decision that every rank must take alike rests on."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.parallel.groups import Groups


def gathered(value: Tensor, groups: Groups) -> list[float]:
    """`value`, a scalar, of every rank of the world, by rank. Collective."""
    value = value.detach().reshape(1)
    parts = [torch.zeros_like(value) for _ in range(groups.world_size)]
    dist.all_gather(parts, value)
    return torch.cat(parts).tolist()


def mean_loss(losses: list[float], groups: Groups) -> float:
    """The mean over the replicas of the loss of the last stage, whose tensor-parallel ranks all have the same.

    If they have not, one reckons wrongly, and the largest counts. NaN if any rank's is not finite.
    """
    if not all(map(math.isfinite, losses)):
        return math.nan
    last = losses[(groups.pp_size - 1) * groups.dp_size * groups.tp_size :]
    return math.fsum(max(last[i : i + groups.tp_size]) for i in range(0, len(last), groups.tp_size)) / groups.dp_size


def largest_replica_sum(values: list[float], groups: Groups) -> float:
    """The largest over the replicas of the sum over a replica's ranks; infinite if one of the numbers is not finite.

    Replicas have equal numbers unless one reckons wrongly: then all must see it, not that one alone.
    """
    sums = [0.0] * groups.dp_size
    for rank, value in enumerate(values):
        sums[replica_of(rank, groups)] += value if math.isfinite(value) else math.inf
    return max(sums)


def replica_of(rank: int, groups: Groups) -> int:
    """The data-parallel rank of a rank of the world: pipe is slowest, then data, then tensor."""
    return rank // groups.tp_size % groups.dp_size
