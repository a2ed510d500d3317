"""Output head and cross-entropy in one: the logits exist for a chunk of rows at a time.

The forward pass keeps two numbers per row; the backward pass computes a chunk's logits again, turns them into their
gradient and multiplies it on at once. A third more arithmetic in the head buys memory that no longer grows with
rows x vocabulary.

Shapes: N rows (B x T), C hidden size, v this rank's vocabulary columns, n rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from megatron_slw.ops import cross_entropy as ce
from megatron_slw.ops.cross_entropy import Reduce
from megatron_slw.ops.library import compute_dtype, declare, new

CHUNK_BYTES = 64 * 2**20


def _check(hidden: Tensor, weight: Tensor, labels: Tensor) -> None:
    torch._check(
        hidden.dim() == 2 and weight.dim() == 2 and hidden.shape[1] == weight.shape[1],
        lambda: f"linear_cross_entropy: hidden {tuple(hidden.shape)} times weight {tuple(weight.shape)}",
    )
    torch._check(
        labels.dim() == 1 and labels.shape[0] == hidden.shape[0] and labels.dtype == torch.int64,
        lambda: f"linear_cross_entropy needs ({hidden.shape[0]},) int64 labels",
    )


def _chunks(hidden_NC: Tensor, weight_vC: Tensor) -> Iterator[slice]:
    rows = max(1, CHUNK_BYTES // max(1, weight_vC.size(0) * hidden_NC.element_size()))
    return (slice(first, first + rows) for first in range(0, hidden_NC.size(0), rows))


def _statistics(hidden: Tensor, weight: Tensor, labels: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(hidden, weight, labels)
    top, total, target = _fake_statistics(hidden, weight, labels, start)
    for part in _chunks(hidden, weight):
        logits_nv = hidden[part] @ weight.T
        top[part], total[part], target[part] = ce.cross_entropy_statistics(logits_nv, labels[part], start)
    return top, total, target


def _backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    grad_hidden = new(hidden)
    # Summed over the chunks in fp32, whatever the type of the weight.
    grad_weight = weight.new_zeros(weight.shape, dtype=compute_dtype(weight))
    for part in _chunks(hidden, weight):
        logits_nv = hidden[part] @ weight.T
        grad_nv = ce.cross_entropy_backward(grad[part], logits_nv, labels[part], top[part], total[part], start)
        torch.mm(grad_nv, weight, out=grad_hidden[part])
        if grad_weight.dtype == weight.dtype:
            grad_weight.addmm_(grad_nv.T, hidden[part])
        else:
            grad_weight += grad_nv.T @ hidden[part]
    return grad_hidden, grad_weight.to(weight.dtype)


def _fake_statistics(hidden: Tensor, weight: Tensor, labels: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    _check(hidden, weight, labels)
    dtype = compute_dtype(hidden)
    return new(hidden, labels.shape, dtype), new(hidden, labels.shape, dtype), new(hidden, labels.shape, dtype)


def _fake_backward(
    grad: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, top: Tensor, total: Tensor, start: int
) -> tuple[Tensor, Tensor]:
    return new(hidden), new(weight)


def _forward(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    top, total, target = _call_statistics(hidden, weight, labels, 0)
    return total.log() - (target - top), top, total


def _fake(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_statistics(hidden, weight, labels, 0)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, *output[1:])


def _grad(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    return (*_call_backward(grad, *ctx.saved_tensors, 0), None)


_call_statistics = declare(
    "linear_cross_entropy_statistics(Tensor hidden, Tensor weight, Tensor labels, int start) "
    "-> (Tensor, Tensor, Tensor)",
    _statistics, _fake_statistics,
)  # fmt: skip
_call_backward = declare(
    "linear_cross_entropy_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor labels, Tensor top, Tensor total, "
    "int start) -> (Tensor, Tensor)",
    _backward, _fake_backward,
)  # fmt: skip
_call = declare(
    "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor labels) -> (Tensor, Tensor, Tensor)",
    _forward, _fake, _grad, _save,
)  # fmt: skip


def linear_cross_entropy(hidden_NC: Tensor, weight_vC: Tensor, labels_N: Tensor) -> Tensor:
    """cross_entropy(hidden_NC @ weight_vC.T, labels_N), (N,) in fp32, in the memory of one chunk of logits."""
    return _call(hidden_NC, weight_vC, labels_N)[0]


class _VocabParallel(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NC: Tensor, weight_vC: Tensor, labels_N: Tensor, start: int, reduce_max: Reduce,
        reduce_sum: Reduce,
    ) -> Tensor:  # fmt: skip
        statistics = _call_statistics(hidden_NC, weight_vC, labels_N, start)
        here_N, _ = ce.place(labels_N, start, weight_vC.size(0))
        loss_N, top_N, total_N = ce.combine(statistics, here_N, reduce_max, reduce_sum)
        ctx.save_for_backward(hidden_NC, weight_vC, labels_N, top_N, total_N)
        ctx.start = start
        return loss_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_call_backward(grads[0], *ctx.saved_tensors, ctx.start), None, None, None, None)


def vocab_parallel_linear_cross_entropy(
    hidden_NC: Tensor, weight_vC: Tensor, labels_N: Tensor, start: int, reduce_max: Reduce, reduce_sum: Reduce
) -> Tensor:
    """The same with the vocabulary cut over ranks; the arguments are those of `vocab_parallel_cross_entropy`.

    The gradient of hidden_NC is this rank's part: the caller sums it over the ranks.
    """
    return _VocabParallel.apply(hidden_NC, weight_vC, labels_N, start, reduce_max, reduce_sum)
