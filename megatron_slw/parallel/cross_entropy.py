"""Cross-entropy on logits whose vocabulary columns are cut over the tensor-parallel ranks.

Two all-reduces, of one number per label (maximum) and of two (normaliser, target logit), never of the logits:
arXiv 1909.08053, section 3. The columns that pad the vocabulary to a round size are left out, so the loss is that of
the real vocabulary, whatever the padding.

Shapes: N labels (B x T), v this rank's real columns, V its columns with padding, C hidden size.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_slw.ops.backend import Operators
from megatron_slw.ops.cross_entropy import Reduce, check_labels
from megatron_slw.ops.cross_entropy import vocab_parallel_cross_entropy as fused_cross_entropy
from megatron_slw.ops.linear_cross_entropy import (
    vocab_parallel_linear_cross_entropy,
    weighted_linear_cross_entropy,
)
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.sharding import shard_range


class _VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_Nv: Tensor, labels_N: Tensor, start: int, groups: Groups) -> Tensor:
        logits_Nv = logits_Nv.float()
        columns = logits_Nv.size(1)
        if columns:
            max_N = logits_Nv.amax(dim=1)
        else:  # a rank that holds nothing but padding
            max_N = logits_Nv.new_full((labels_N.numel(),), float("-inf"))
        dist.all_reduce(max_N, op=dist.ReduceOp.MAX, group=groups.tp_group)
        shifted_Nv = logits_Nv - max_N[:, None]
        elsewhere_N = (labels_N < start) | (labels_N >= start + columns)
        local_N = (labels_N - start).masked_fill(elsewhere_N, 0)
        if columns:
            target_N = shifted_Nv.gather(1, local_N[:, None])[:, 0].masked_fill(elsewhere_N, 0.0)
        else:
            target_N = torch.zeros_like(max_N)
        softmax_Nv = shifted_Nv.exp_()
        sums_2N = torch.stack([softmax_Nv.sum(dim=1), target_N])
        dist.all_reduce(sums_2N, group=groups.tp_group)
        softmax_Nv.div_(sums_2N[0][:, None])
        ctx.save_for_backward(softmax_Nv, local_N, elsewhere_N)
        return sums_2N[0].log() - sums_2N[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        softmax_Nv, local_N, elsewhere_N = ctx.saved_tensors
        grad_Nv = softmax_Nv * grads[0][:, None]
        if grad_Nv.size(1):
            grad_Nv.scatter_add_(1, local_N[:, None], -(grads[0].masked_fill(elsewhere_N, 0.0))[:, None])
        return grad_Nv, None, None, None


def _all_reduce(x: Tensor, op: Any, groups: Groups) -> Tensor:
    dist.all_reduce(x, op=op, group=groups.tp_group)
    return x


def _reductions(groups: Groups) -> tuple[Reduce, Reduce]:
    return (
        partial(_all_reduce, op=dist.ReduceOp.MAX, groups=groups),
        partial(_all_reduce, op=dist.ReduceOp.SUM, groups=groups),
    )


def vocab_parallel_linear_loss(
    hidden_BTC: Tensor,
    weight_VC: Tensor,
    targets: tuple[Tensor, Tensor],
    vocab_size: int,
    padded_vocab_size: int,
    groups: Groups,
) -> Tensor:
    """Sum over the micro-batch of label weight x negative log-likelihood, without ever holding all logits.

    Args:
        hidden_BTC: what enters the output head, the same on every tensor-parallel rank; its gradient is this rank's
            part (see `copy_to_tensor`).
        weight_VC: this rank's rows of the token table, whole.
        targets: labels (B, T) int64 in [0, vocab_size), and their weights (B, T) fp32.
        vocab_size: as in `vocab_parallel_cross_entropy`, with the two after it.

    Returns:
        A scalar in fp32, the same on every tensor-parallel rank.
    """
    start, stop = shard_range(padded_vocab_size, groups.tp_rank, groups.tp_size)
    columns = max(0, min(stop, vocab_size) - start)
    hidden_NC, labels_N, weights_N = hidden_BTC.flatten(0, 1), targets[0].flatten(), targets[1].flatten()
    if groups.tp_size == 1:
        return weighted_linear_cross_entropy(hidden_NC, weight_VC, labels_N, weights_N, columns)
    check_labels(labels_N, vocab_size)
    loss_N = vocab_parallel_linear_cross_entropy(
        hidden_NC, weight_VC, labels_N, start, columns, *_reductions(groups)
    )
    return (loss_N * weights_N).sum()


def vocab_parallel_cross_entropy(
    logits_BTV: Tensor,
    labels_BT: Tensor,
    vocab_size: int,
    padded_vocab_size: int,
    groups: Groups,
    operators: Operators,
) -> Tensor:
    """Negative log-likelihood of each label, in fp32.

    Args:
        logits_BTV: this rank's columns (B, T, padded_vocab_size / tp).
        labels_BT: int64 token ids in [0, vocab_size).
        vocab_size: the real columns of all ranks; those after them are padding.
        padded_vocab_size: all columns of all ranks.
        groups: whose tensor-parallel group holds the other columns.
        operators: the implementation.

    Returns:
        (B, T) fp32, the same on every tensor-parallel rank.

    Raises:
        IndexError: a label is outside the vocabulary, on the CPU; on CUDA a device-side assertion fails.
    """
    start, stop = shard_range(padded_vocab_size, groups.tp_rank, groups.tp_size)
    columns = max(0, min(stop, vocab_size) - start)
    logits_NV = logits_BTV.flatten(0, 1)
    if groups.tp_size == 1:
        return operators.cross_entropy(logits_NV, labels_BT.flatten(), columns).view_as(labels_BT)
    check_labels(labels_BT, vocab_size)
    if operators.fused:
        loss_N = fused_cross_entropy(logits_NV, labels_BT.flatten(), start, columns, *_reductions(groups))
        return loss_N.view_as(labels_BT)
    loss_N = _VocabParallelCrossEntropy.apply(logits_NV[:, :columns], labels_BT.flatten(), start, groups)
    return loss_N.view_as(labels_BT)


def vocab_parallel_argmax(logits_BTV: Tensor, vocab_size: int, padded_vocab_size: int, groups: Groups) -> Tensor:
    """The most probable token at each place, the lowest of equal ones; arguments as in `vocab_parallel_cross_entropy`.

    Returns:
        (B, T) int64, the same on every tensor-parallel rank.
    """
    start, stop = shard_range(padded_vocab_size, groups.tp_rank, groups.tp_size)
    columns = max(0, min(stop, vocab_size) - start)
    if groups.tp_size == 1:
        return logits_BTV[..., :columns].argmax(dim=-1)
    if columns:
        max_BT, best_BT = logits_BTV[..., :columns].float().max(dim=-1)
    else:  # a rank that holds nothing but padding
        max_BT = logits_BTV.new_full(logits_BTV.shape[:-1], float("-inf"), dtype=torch.float32)
        best_BT = torch.zeros_like(max_BT, dtype=torch.int64)
    highest_BT = _all_reduce(max_BT.clone(), dist.ReduceOp.MAX, groups)
    candidates_BT = torch.where(max_BT == highest_BT, best_BT + start, vocab_size)
    return _all_reduce(candidates_BT, dist.ReduceOp.MIN, groups)
