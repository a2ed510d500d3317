"""Cross-entropy that keeps no second copy of the logits, on one rank or with the vocabulary cut over ranks.

The forward pass reads the logits once and keeps two numbers per row, their maximum and the sum of exp(logit - maximum);
the backward pass makes the gradient from these and the logits. With the vocabulary cut over ranks the two are reduced:
two all-reduces of one and two numbers per row, never of logits (arXiv 1909.08053, section 3).

Shapes: N rows (B x T), v this rank's vocabulary columns, the first of which is column `start` of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops.library import compute_dtype, declare, new

Reduce = Callable[[Tensor], Tensor]
"""Reduces a tensor over the ranks that hold the other columns, and returns it."""


def _check(logits: Tensor, labels: Tensor) -> None:
    torch._check(
        logits.dim() == 2 and labels.dim() == 1 and labels.shape[0] == logits.shape[0],
        lambda: f"cross_entropy needs (N, v) logits and (N,) labels, not {tuple(logits.shape)}, {tuple(labels.shape)}",
    )
    torch._check(labels.dtype == torch.int64, lambda: f"cross_entropy needs int64 labels, not {labels.dtype}")


def place(labels: Tensor, start: int, columns: int) -> tuple[Tensor, Tensor]:
    """Whether this rank holds the column of each label, and which of its columns that is (0 where it is not)."""
    here = (labels >= start) & (labels < start + columns)
    return here, (labels - start).masked_fill(~here, 0)


def _statistics(logits: Tensor, labels: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, labels)
    wide = logits.to(compute_dtype(logits))
    if not logits.size(1):  # a rank that holds nothing but padding
        zero = wide.new_zeros(logits.size(0))
        return torch.full_like(zero, float("-inf")), zero, zero.clone()
    top = wide.amax(1)
    total = (wide - top[:, None]).exp().sum(1)
    here, column = place(labels, start, logits.size(1))
    return top, total, wide.gather(1, column[:, None])[:, 0].masked_fill(~here, 0.0)


def _fake_statistics(logits: Tensor, labels: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, labels)
    dtype = compute_dtype(logits)
    return new(logits, labels.shape, dtype), new(logits, labels.shape, dtype), new(logits, labels.shape, dtype)


def _backward(grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int) -> Tensor:
    result = ((logits.to(top.dtype) - top[:, None]).exp() * (grad.to(top.dtype) / total)[:, None]).contiguous()
    if logits.size(1):
        here, column = place(labels, start, logits.size(1))
        result.scatter_add_(1, column[:, None], -(grad.to(top.dtype).masked_fill(~here, 0.0))[:, None])
    return result.to(logits.dtype)


def _fake_backward(grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int) -> Tensor:
    return new(logits)


def _forward(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, total, target = cross_entropy_statistics(logits, labels, 0)
    return total.log() - (target - top), top, total


def _fake(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_statistics(logits, labels, 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels = inputs
    _, top, total = output
    ctx.mark_non_differentiable(top, total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, top, total)


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None]:
    return None if grad is None else cross_entropy_backward(grad, *ctx.saved_tensors, 0), None


cross_entropy_statistics = declare(
    "cross_entropy_statistics(Tensor logits, Tensor labels, int start) -> (Tensor, Tensor, Tensor)",
    _statistics, _fake_statistics,
)  # fmt: skip
cross_entropy_backward = declare(
    "cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor top, Tensor total, int start) -> Tensor",
    _backward, _fake_backward,
)  # fmt: skip
_call = declare(
    "cross_entropy(Tensor logits, Tensor labels) -> (Tensor, Tensor, Tensor)", _forward, _fake, _grad, _save
)


def cross_entropy(logits_Nv: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood of each label, (N,) in fp32. The columns may be a slice of wider rows."""
    return _call(logits_Nv, labels_N)[0]


def combine(
    statistics: tuple[Tensor, Tensor, Tensor], here_N: Tensor, reduce_max: Reduce, reduce_sum: Reduce
) -> tuple[Tensor, Tensor, Tensor]:
    """The ranks' statistics made one: loss, maximum and normaliser of each row, the same on every rank."""
    top_N, total_N, target_N = statistics
    highest_N = reduce_max(top_N.clone())
    shifted_N = (target_N - highest_N).masked_fill(~here_N, 0.0)
    sums_2N = reduce_sum(torch.stack([total_N * (top_N - highest_N).exp(), shifted_N]))
    return sums_2N[0].log() - sums_2N[1], highest_N, sums_2N[0]


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_Nv: Tensor, labels_N: Tensor, start: int, reduce_max: Reduce, reduce_sum: Reduce
    ) -> Tensor:
        statistics = cross_entropy_statistics(logits_Nv, labels_N, start)
        here_N, _ = place(labels_N, start, logits_Nv.size(1))
        loss_N, top_N, total_N = combine(statistics, here_N, reduce_max, reduce_sum)
        ctx.save_for_backward(logits_Nv, labels_N, top_N, total_N)
        ctx.start = start
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return cross_entropy_backward(grads[0], *ctx.saved_tensors, ctx.start), None, None, None, None


def vocab_parallel_cross_entropy(
    logits_Nv: Tensor, labels_N: Tensor, start: int, reduce_max: Reduce, reduce_sum: Reduce
) -> Tensor:
    """Negative log-likelihood of each label, (N,) in fp32, the same on every rank.

    Args:
        logits_Nv: this rank's columns; none is allowed.
        labels_N: int64, in the whole vocabulary.
        start: the vocabulary's column that is this rank's first.
        reduce_max: takes the maximum over the ranks, of (N,).
        reduce_sum: takes the sum over the ranks, of (2, N).
    """
    return _VocabParallel.apply(logits_Nv, labels_N, start, reduce_max, reduce_sum)
