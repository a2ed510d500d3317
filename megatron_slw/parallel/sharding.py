"""Each parameter carries one `Shard`: its logical name and shape, and which block of it this rank holds.

Initial values, the gradient norm, checkpoints and growth all read it; nothing else knows how a tensor is split.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # groups imports DeepSpeed, which a reader of checkpoints does not need
    from megatron_slw.parallel.groups import Groups


@dataclass(frozen=True)
class Shard:
    """One rank's block of a logical tensor.

    `dim` None means that every tensor-parallel rank holds the whole tensor.
    """

    name: str
    shape: tuple[int, ...]
    dim: int | None = None
    start: int = 0
    stop: int = 0

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of the block."""
        if self.dim is None:
            return self.shape
        return (*self.shape[: self.dim], self.stop - self.start, *self.shape[self.dim + 1 :])

    def slice(self, logical: Tensor) -> Tensor:
        """The block of a whole logical tensor."""
        return logical if self.dim is None else logical.narrow(self.dim, self.start, self.stop - self.start)


def shard_range(size: int, rank: int, count: int) -> tuple[int, int]:
    """Start and stop of part `rank` of `size` entries cut into `count` parts, the first ones an entry longer.

    The parts need not be equal: a padded vocabulary of 384 splits over 5 ranks as well as over 4.
    """
    base, longer = divmod(size, count)
    start = rank * base + min(rank, longer)
    return start, start + base + (rank < longer)


def make_parameter(name: str, shape: tuple[int, ...], dim: int | None, groups: Groups) -> nn.Parameter:
    """An uninitialised parameter that holds this rank's block of the logical tensor `name`.

    DeepSpeed sums squared gradients over the ranks of a replica and skips a parameter on tensor ranks other than the
    first unless `model_parallel` is set (its clip norm then depends on the layout; AdamW hides it, SGD shows it): so
    it is set on sharded parameters everywhere, and on replicated ones on the first tensor rank alone.
    """
    start, stop = shard_range(shape[dim], groups.tp_rank, groups.tp_size) if dim is not None else (0, 0)
    shard = Shard(name, shape, dim, start, stop)
    param = nn.Parameter(torch.empty(shard.local_shape))
    param.shard = shard  # type: ignore[attr-defined]
    param.model_parallel = dim is not None or groups.tp_rank == 0  # type: ignore[attr-defined]
    return param


def shard_of(param: nn.Parameter) -> Shard:
    """The record that `make_parameter` attached."""
    return param.shard  # type: ignore[attr-defined]


def sharded_parameters(module: nn.Module) -> Iterator[tuple[Shard, nn.Parameter]]:
    """Every parameter of `module` once, with its record, in the order of registration."""
    for param in module.parameters():
        yield shard_of(param), param


def counts_in_norm(param: nn.Parameter) -> bool:
    """Whether this rank adds the parameter's gradient to a sum over the ranks of a replica: each entry just once."""
    return param.model_parallel and not getattr(param, "ds_pipe_replicated", False)  # type: ignore[attr-defined]
