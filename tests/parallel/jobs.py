"""What the tensor-parallel tests run on each rank."""

from __future__ import annotations

import numpy as np
import torch

from megatron_slw.config.schema import ParallelConfig
from megatron_slw.ops.backend import select_operators
from megatron_slw.parallel.cross_entropy import vocab_parallel_cross_entropy
from megatron_slw.parallel.groups import build_groups
from megatron_slw.parallel.layers import Dropout
from megatron_slw.parallel.sharding import shard_range


def cross_entropy(
    size: int, logits: np.ndarray, labels: np.ndarray, vocab: int, backend: str
) -> tuple[np.ndarray, np.ndarray, int]:
    """Loss, gradient of this rank's columns under a weighted sum, and where the columns start."""
    groups = build_groups(ParallelConfig(tensor=size))
    padded = logits.shape[-1]
    start, stop = shard_range(padded, groups.tp_rank, size)
    mine = torch.from_numpy(logits[..., start:stop].copy()).requires_grad_()
    operators = select_operators(backend, "cpu")
    loss_BT = vocab_parallel_cross_entropy(mine, torch.from_numpy(labels), vocab, padded, groups, operators)
    weights = torch.linspace(0.5, 1.5, loss_BT.numel()).view_as(loss_BT)
    (loss_BT * weights).sum().backward()
    assert mine.grad is not None, "no gradient"
    return loss_BT.detach().numpy(), mine.grad.numpy(), start


def dropout_masks(local: bool, steps: int) -> np.ndarray:
    """The masks that this rank draws in a row, from a generator seeded alike everywhere."""
    groups = build_groups(ParallelConfig(tensor=2))
    layer = Dropout(0.3, groups, local=local).train()
    torch.manual_seed(7)
    return np.stack([layer(torch.ones(4, 100)).numpy() for _ in range(steps)])


def recomputed_dropout(local: bool) -> tuple[np.ndarray, np.ndarray]:
    """The gradient through a checkpointed dropout layer, and its output: equal where the mask was repeated."""
    groups = build_groups(ParallelConfig(tensor=2))
    layer = Dropout(0.3, groups, local=local).train()
    x = torch.ones(4, 100, requires_grad=True)
    torch.manual_seed(7)
    out = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False)
    torch.manual_seed(8)
    out.sum().backward()
    assert x.grad is not None, "no gradient"
    return out.detach().numpy(), x.grad.numpy()
