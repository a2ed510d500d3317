"""Output head and cross-entropy in one: the logits exist for a chunk of rows at a time.

    linear_cross_entropy                   loss of each row. Two numbers per row are kept; the backward pass computes a
                                           chunk's logits again, turns them into their gradient and multiplies it on.
    weighted_linear_cross_entropy          sum of weight x loss. The weights are known in the forward pass, so a chunk's
                                           logits become gradients there and then, and nothing is computed twice.
    vocab_parallel_linear_cross_entropy    the first with the vocabulary cut over ranks, in two reductions.

The last rows of the table may be padding: `columns` is how many of them are real.

Shapes: N rows (B x T), C hidden size, V rows of this rank's table, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops import cross_entropy as ce
from megatron_slw.ops.choice import rows_of_chunk
from megatron_slw.ops.cross_entropy import Reduce
from megatron_slw.ops.library import compute_dtype, declare, new


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, columns: int) -> None:
    torch._check(
        hidden.dim() == 2 and weight.dim() == 2 and hidden.shape[1] == weight.shape[1],
        lambda: f"linear_cross_entropy: hidden {tuple(hidden.shape)} times weight {tuple(weight.shape)}",
    )
    torch._check(
        labels.dim() == 1 and labels.shape[0] == hidden.shape[0] and labels.dtype == torch.int64,
        lambda: f"linear_cross_entropy needs ({hidden.shape[0]},) int64 labels",
    )
    torch._check(
        columns >= 0 and columns <= weight.shape[0],
        lambda: f"linear_cross_entropy: {columns} of {weight.shape[0]} rows of the table",
    )


def _chunks(hidden_NC: Tensor, weight_VC: Tensor) -> Iterator[slice]:
    rows = rows_of_chunk(weight_VC.size(0), hidden_NC.element_size(), hidden_NC.device.type)
    return (slice(first, first + rows) for first in range(0, hidden_NC.size(0), rows))


def _statistics(
    hidden: Tensor, weight: Tensor, labels: Tensor, start: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check(hidden, weight, labels, columns)
    top, total, target = _fake_statistics(hidden, weight, labels, start, columns)
    for part in _chunks(hidden, weight):
        logits_nV = hidden[part] @ weight.T
        top[part], total[part], target[part] = ce.cross_entropy_statistics(logits_nV, labels[part], start, columns)
    return top, total, target


def _backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int, columns: int
) -> tuple[Tensor, Tensor]:
    gradients = _Gradients(hidden, weight)
    for part in _chunks(hidden, weight):
        logits_nV = hidden[part] @ weight.T
        statistics = top[part], total[part]
        gradients.add(
            part, ce.cross_entropy_backward(grad[part], logits_nV, labels[part], *statistics, start, columns)
        )
    return gradients.hidden_NC, gradients.of_weight()


class _Gradients:
    """Sums the gradient of the table over the chunks, in fp32 whatever its type, and gathers that of the rows."""

    def __init__(self, hidden: Tensor, weight: Tensor) -> None:
        self.x, self.weight = hidden, weight
        self.hidden_NC = new(hidden)
        self.weight_VC = weight.new_zeros(weight.shape, dtype=compute_dtype(weight))

    def add(self, part: slice, grad_nV: Tensor) -> None:
        torch.mm(grad_nV, self.weight, out=self.hidden_NC[part])
        if self.weight_VC.dtype == self.weight.dtype:
            self.weight_VC.addmm_(grad_nV.T, self.x[part])
        else:
            self.weight_VC += grad_nV.T @ self.x[part]

    def of_weight(self) -> Tensor:
        return self.weight_VC.to(self.weight.dtype)


def _fake_statistics(
    hidden: Tensor, weight: Tensor, labels: Tensor, start: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check(hidden, weight, labels, columns)
    dtype = compute_dtype(hidden)
    return new(hidden, labels.shape, dtype), new(hidden, labels.shape, dtype), new(hidden, labels.shape, dtype)


def _fake_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int, columns: int
) -> tuple[Tensor, Tensor]:
    return new(hidden), new(weight)


def _forward(hidden: Tensor, weight: Tensor, labels: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    ce.check_labels(labels, columns)
    top, total, target = _call_statistics(hidden, weight, labels, 0, columns)
    return total.log() - (target - top), top, total


def _fake(hidden: Tensor, weight: Tensor, labels: Tensor, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_statistics(hidden, weight, labels, 0, columns)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.columns = inputs[3]
    ctx.save_for_backward(*inputs[:3], *output[1:])


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None
    return (*_call_backward(grad, *ctx.saved_tensors, 0, ctx.columns), None, None)


def _weighted(
    hidden: Tensor, weight: Tensor, labels: Tensor, row_weights: Tensor, columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, its gradients divided by the largest weight, and that weight: fp16 would lose gradients of 1e-8."""
    _check(hidden, weight, labels, columns)
    ce.check_labels(labels, columns)
    factors = row_weights.to(compute_dtype(hidden))
    scale = factors.abs().amax() if factors.numel() else factors.new_ones(())
    scale = torch.where(scale > 0, scale, 1.0)
    gradients, loss = _Gradients(hidden, weight), factors.new_zeros(())
    for part in _chunks(hidden, weight):
        logits_nV = hidden[part] @ weight.T
        top, total, target = ce.cross_entropy_statistics(logits_nV, labels[part], 0, columns)
        loss += ((total.log() - (target - top)) * factors[part]).sum()
        grad_n = factors[part] / scale
        gradients.add(part, ce.cross_entropy_backward(grad_n, logits_nV, labels[part], top, total, 0, columns))
    return loss, gradients.hidden_NC, gradients.of_weight(), scale


def _fake_weighted(
    hidden: Tensor, weight: Tensor, labels: Tensor, row_weights: Tensor, columns: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(hidden, weight, labels, columns)
    dtype = compute_dtype(hidden)
    return new(hidden, (), dtype), new(hidden), new(weight), new(hidden, (), dtype)


def _save_weighted(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def _grad_weighted(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    hidden_NC, weight_VC, scale = ctx.saved_tensors
    factor = grad * scale
    return hidden_NC * factor, weight_VC * factor, None, None, None


_call_statistics = declare(
    "linear_cross_entropy_statistics(Tensor hidden, Tensor weight, Tensor labels, int start, int columns) "
    "-> (Tensor, Tensor, Tensor)",
    _statistics, _fake_statistics,
)  # fmt: skip
_call_backward = declare(
    "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor labels, Tensor top, Tensor total, "
    "int start, int columns) -> (Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip
_call = declare(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor labels, int columns) -> (Tensor, Tensor, Tensor)",
    _forward, _fake, _grad, _save,
)  # fmt: skip
_call_weighted = declare(
    "weighted_linear_cross_entropy(Tensor hidden, Tensor weight, Tensor labels, Tensor row_weights, int columns) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _weighted, _fake_weighted, _grad_weighted, _save_weighted,
)  # fmt: skip


def linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, columns: int | None = None
) -> Tensor:
    """cross_entropy(hidden_NC @ weight_VC[:columns].T, labels_N), (N,) in fp32, in the memory of a chunk of logits.

    Raises:
        IndexError: a label is not in [0, columns), on the CPU; on CUDA a device-side assertion fails.
    """
    return _call(hidden_NC, weight_VC, labels_N, weight_VC.size(0) if columns is None else columns)[0]


def weighted_linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, row_weights_N: Tensor, columns: int | None = None
) -> Tensor:
    """(row_weights_N * linear_cross_entropy(...)).sum(), a scalar in fp32; no gradient reaches the row weights.

    Raises:
        IndexError: as `linear_cross_entropy`.
    """
    columns = weight_VC.size(0) if columns is None else columns
    if torch.is_grad_enabled() and (hidden_NC.requires_grad or weight_VC.requires_grad):
        return _call_weighted(hidden_NC, weight_VC, labels_N, row_weights_N, columns)[0]
    return (_call(hidden_NC, weight_VC, labels_N, columns)[0] * row_weights_N).sum()


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, start: int, columns: int,
        reduce_max: Reduce, reduce_sum: Reduce,
    ) -> Tensor:  # fmt: skip
        statistics = _call_statistics(hidden_NC, weight_VC, labels_N, start, columns)
        here_N, _ = ce.place(labels_N, start, columns)
        loss_N, top_N, total_N = ce.combine(statistics, here_N, reduce_max, reduce_sum)
        ctx.save_for_backward(hidden_NC, weight_VC, labels_N, top_N, total_N)
        ctx.place = start, columns
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_call_backward(grads[0], *ctx.saved_tensors, *ctx.place), None, None, None, None, None)


def vocab_parallel_linear_cross_entropy(
    hidden_NC: Tensor, weight_VC: Tensor, labels_N: Tensor, start: int, columns: int, reduce_max: Reduce,
    reduce_sum: Reduce,
) -> Tensor:  # fmt: skip
    """`linear_cross_entropy` with the vocabulary cut over ranks; for arguments see `vocab_parallel_cross_entropy`.

    `columns` of this rank's rows of the table are real, the first of which is `start` of the vocabulary. The gradient
    of hidden_NC is this rank's part: the caller sums it over the ranks.
    """
    return _VocabParallel.apply(hidden_NC, weight_VC, labels_N, start, columns, reduce_max, reduce_sum)
