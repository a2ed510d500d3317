"""Cross-entropy that keeps no second copy of the logits, on one rank or with the vocabulary cut over ranks.

The forward pass reads the logits once and keeps two numbers per row, their maximum and the sum of exp(logit - maximum);
the backward pass makes the gradient from these and the logits. With the vocabulary cut over ranks the two are reduced:
two all-reduces of one and two numbers per row, never of logits (arXiv 1909.08053, section 3).

Shapes: N rows (B x T), V this rank's vocabulary columns, the first of which is column `start` of the vocabulary. The
last ones may be padding: `columns` is how many are real.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops.library import compute_dtype, declare, new

Reduce = Callable[[Tensor], Tensor]
"""Reduces a tensor over the ranks that hold the other columns, and returns it."""


def _check(logits: Tensor, labels: Tensor, columns: int) -> None:
    torch._check(
        logits.dim() == 2 and labels.dim() == 1 and labels.shape[0] == logits.shape[0],
        lambda: f"cross_entropy needs (N, V) logits and (N,) labels, not {tuple(logits.shape)}, {tuple(labels.shape)}",
    )
    torch._check(labels.dtype == torch.int64, lambda: f"cross_entropy needs int64 labels, not {labels.dtype}")
    torch._check(
        columns >= 0 and columns <= logits.shape[1], lambda: f"cross_entropy: {columns} of {logits.shape[1]} columns"
    )


def check_labels(labels: Tensor, vocab_size: int) -> None:
    """Raise at a label outside [0, vocab_size), which would cost a finite wrong number.

    On CUDA the comparison stays on the device, and a failing one ends the process there as it does in
    F.cross_entropy: nothing waits for it. No label is special; labels that shall not count have weight 0.

    Raises:
        IndexError: on the CPU.
    """
    if labels.device.type != "cpu":
        inside = (labels.clamp(0, vocab_size - 1) == labels).all()
        torch._assert_async(inside, f"a label is outside the vocabulary of {vocab_size}")
    elif labels.numel():
        low, high = (int(x) for x in labels.aminmax())
        if low < 0 or high >= vocab_size:
            wrong = low if low < 0 else high
            raise IndexError(
                f"label {wrong} is outside the vocabulary of {vocab_size}: give labels that shall not count weight 0"
            )


def place(labels: Tensor, start: int, columns: int) -> tuple[Tensor, Tensor]:
    """Whether this rank holds the column of each label, and which of its columns that is (0 where it is not)."""
    here = (labels >= start) & (labels < start + columns)
    return here, (labels - start).masked_fill(~here, 0)


def _statistics(logits: Tensor, labels: Tensor, start: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, labels, columns)
    wide = logits[:, :columns].to(compute_dtype(logits))
    if not columns:  # a rank that holds nothing but padding
        zero = wide.new_zeros(logits.size(0))
        return torch.full_like(zero, float("-inf")), zero, zero.clone()
    top = wide.amax(1)
    total = (wide - top[:, None]).exp().sum(1)
    here, column = place(labels, start, columns)
    return top, total, wide.gather(1, column[:, None])[:, 0].masked_fill(~here, 0.0)


def _fake_statistics(logits: Tensor, labels: Tensor, start: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(logits, labels, columns)
    dtype = compute_dtype(logits)
    return new(logits, labels.shape, dtype), new(logits, labels.shape, dtype), new(logits, labels.shape, dtype)


def _backward(
    grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int, columns: int
) -> Tensor:
    wide = logits[:, :columns].to(top.dtype)
    result = (wide - top[:, None]).exp() * (grad.to(top.dtype) / total)[:, None]
    if columns:
        here, column = place(labels, start, columns)
        result.scatter_add_(1, column[:, None], -(grad.to(top.dtype).masked_fill(~here, 0.0))[:, None])
    if columns < logits.size(1):
        result = torch.nn.functional.pad(result, (0, logits.size(1) - columns))
    return result.to(logits.dtype).contiguous()


def _fake_backward(
    grad: Tensor, logits: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int, columns: int
) -> Tensor:
    return new(logits)


def _forward(logits: Tensor, labels: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    check_labels(labels, columns)
    top, total, target = cross_entropy_statistics(logits, labels, 0, columns)
    return total.log() - (target - top), top, total


def _fake(logits: Tensor, labels: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_statistics(logits, labels, 0, columns)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, ctx.columns = inputs
    _, top, total = output
    ctx.mark_non_differentiable(top, total)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(logits, labels, top, total)


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, None, None]:
    if grad is None:
        return None, None, None
    return cross_entropy_backward(grad, *ctx.saved_tensors, 0, ctx.columns), None, None


cross_entropy_statistics = declare(
    "cross_entropy_statistics(Tensor logits, Tensor labels, int start, int columns) -> (Tensor, Tensor, Tensor)",
    _statistics, _fake_statistics,
)  # fmt: skip
cross_entropy_backward = declare(
    "cross_entropy_backward(Tensor grad, Tensor logits, Tensor labels, Tensor top, Tensor total, int start, "
    "int columns) -> Tensor",
    _backward, _fake_backward,
)  # fmt: skip
_call = declare(
    "cross_entropy(Tensor logits, Tensor labels, int columns) -> (Tensor, Tensor, Tensor)",
    _forward, _fake, _grad, _save,
)  # fmt: skip


def cross_entropy(logits_NV: Tensor, labels_N: Tensor, columns: int | None = None) -> Tensor:
    """Negative log-likelihood of each label, (N,) in fp32.

    Args:
        logits_NV: fp32, fp16, bf16 or fp64; a slice of wider rows is not copied.
        labels_N: int64.
        columns: how many are real; those after them are padding, with gradient 0. None is all.

    Raises:
        IndexError: a label is not in [0, columns), on the CPU; on CUDA a device-side assertion fails.
    """
    return _call(logits_NV, labels_N, logits_NV.size(1) if columns is None else columns)[0]


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
        ctx: Any, logits_NV: Tensor, labels_N: Tensor, start: int, columns: int, reduce_max: Reduce, reduce_sum: Reduce
    ) -> Tensor:
        statistics = cross_entropy_statistics(logits_NV, labels_N, start, columns)
        here_N, _ = place(labels_N, start, columns)
        loss_N, top_N, total_N = combine(statistics, here_N, reduce_max, reduce_sum)
        ctx.save_for_backward(logits_NV, labels_N, top_N, total_N)
        ctx.place = start, columns
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return cross_entropy_backward(grads[0], *ctx.saved_tensors, *ctx.place), None, None, None, None, None


def vocab_parallel_cross_entropy(
    logits_NV: Tensor, labels_N: Tensor, start: int, columns: int, reduce_max: Reduce, reduce_sum: Reduce
) -> Tensor:
    """Negative log-likelihood of each label, (N,) in fp32, the same on every rank.

    Args:
        logits_NV: this rank's columns.
        labels_N: int64, in the whole vocabulary; `check_labels` is the caller's, who knows its size.
        start: the vocabulary's column that is this rank's first.
        columns: how many of this rank's are real, perhaps none; those after them are padding.
        reduce_max: takes the maximum over the ranks, of (N,).
        reduce_sum: takes the sum over the ranks, of (2, N).
    """
    return _VocabParallel.apply(logits_NV, labels_N, start, columns, reduce_max, reduce_sum)
