"""The four communications between tensor-parallel regions, each a function with its adjoint as backward.

f and g are the names of arXiv 1909.08053 (section 3); the sequence-parallel pair is arXiv 2205.05198 (section 4.2.2).

    function               forward          backward        used
    copy_to_tensor         identity (f)     all-reduce      before a column-parallel matrix
    reduce_from_tensor     all-reduce (g)   identity        after a row-parallel matrix
    gather_sequence        all-gather       reduce-scatter  in place of f, when activations are sequence-sharded
    scatter_sum_sequence   reduce-scatter   all-gather      in place of g

Shapes: B rows, T full length, t = T / tensor-parallel size, C hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.parallel.groups import Groups


def _all_reduce(x: Tensor, groups: Groups) -> Tensor:
    x = x.contiguous().clone()
    dist.all_reduce(x, group=groups.tp_group)
    return x


def _gather_dim1(x_BtC: Tensor, groups: Groups) -> Tensor:
    parts = [torch.empty_like(x_BtC) for _ in range(groups.tp_size)]
    dist.all_gather(parts, x_BtC.contiguous(), group=groups.tp_group)
    return torch.cat(parts, dim=1)


def _reduce_scatter_dim1(x_BTC: Tensor, groups: Groups) -> Tensor:
    if dist.get_backend(groups.tp_group) == "gloo":  # gloo has no reduce_scatter: reduce, then keep the own part
        return _all_reduce(x_BTC, groups).chunk(groups.tp_size, dim=1)[groups.tp_rank].contiguous()
    parts = [part.contiguous() for part in x_BTC.chunk(groups.tp_size, dim=1)]
    out = torch.empty_like(parts[0])
    dist.reduce_scatter(out, parts, group=groups.tp_group)
    return out


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grads[0], ctx.groups), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        return _all_reduce(x, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BtC: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return _gather_dim1(x_BtC, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter_dim1(grads[0], ctx.groups), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BTC: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return _reduce_scatter_dim1(x_BTC, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather_dim1(grads[0], ctx.groups), None


def copy_to_tensor(x: Tensor, groups: Groups) -> Tensor:
    """Identity; the gradients of the tensor-parallel ranks are summed."""
    return x if groups.tp_size == 1 else _Copy.apply(x, groups)


def reduce_from_tensor(x: Tensor, groups: Groups) -> Tensor:
    """Sum of the tensor-parallel ranks' partial results."""
    return x if groups.tp_size == 1 else _Reduce.apply(x, groups)


def gather_sequence(x_BtC: Tensor, groups: Groups) -> Tensor:
    """(B, t, C) of each rank to (B, T, C) on all."""
    return x_BtC if groups.tp_size == 1 else _Gather.apply(x_BtC, groups)


def scatter_sum_sequence(x_BTC: Tensor, groups: Groups) -> Tensor:
    """Partial (B, T, C) of each rank to the summed (B, t, C) of this rank's part of the sequence."""
    return x_BTC if groups.tp_size == 1 else _ScatterSum.apply(x_BTC, groups)
