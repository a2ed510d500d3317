"""Tensor-parallel layers. With one tensor-parallel rank each is its plain PyTorch counterpart.

Shapes: B rows, T length, t = T / tensor-parallel size where sequence parallelism shards it (else T), C hidden size,
I and O input and output features, V padded vocabulary. Column-parallel cuts O, row-parallel cuts I.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_slw.ops.backend import Operators, dropout_add
from megatron_slw.parallel.collectives import (
    copy_to_tensor,
    gather_sequence,
    reduce_from_tensor,
    scatter_sum_sequence,
)
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.sharding import make_parameter, shard_of


class ColumnParallelLinear(nn.Module):
    """y = x W^T + b with the O rows of W cut over the tensor-parallel ranks: (B, t, C) to (B, T, O / tp)."""

    def __init__(self, name: str, in_size: int, out_size: int, groups: Groups, sequence_parallel: bool) -> None:
        super().__init__()
        self.groups, self.sequence_parallel = groups, sequence_parallel
        self.weight = make_parameter(f"{name}.weight", (out_size, in_size), 0, groups)
        self.bias = make_parameter(f"{name}.bias", (out_size,), 0, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, I) to this rank's (B, T, O / tp)."""
        enter = gather_sequence if self.sequence_parallel else copy_to_tensor
        return F.linear(enter(x, self.groups), self.weight, self.bias)


class ColumnParallelLinearGelu(ColumnParallelLinear):
    """The same with GELU after it, in its tanh form or the exact one."""

    def __init__(
        self, name: str, in_size: int, out_size: int, groups: Groups, sequence_parallel: bool, operators: Operators,
        tanh: bool,
    ) -> None:  # fmt: skip
        super().__init__(name, in_size, out_size, groups, sequence_parallel)
        self.operators, self.tanh = operators, tanh

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, I) to this rank's (B, T, O / tp)."""
        enter = gather_sequence if self.sequence_parallel else copy_to_tensor
        return self.operators.linear_gelu(enter(x, self.groups), self.weight, self.bias, self.tanh)


class RowParallelLinear(nn.Module):
    """y = x W^T + b with the I columns of W cut over the tensor-parallel ranks: (B, T, I / tp) to (B, t, O)."""

    def __init__(self, name: str, in_size: int, out_size: int, groups: Groups, sequence_parallel: bool) -> None:
        super().__init__()
        self.groups, self.sequence_parallel = groups, sequence_parallel
        self.weight = make_parameter(f"{name}.weight", (out_size, in_size), 1, groups)
        self.bias = make_parameter(f"{name}.bias", (out_size,), None, groups)

    def forward(self, x: Tensor) -> Tensor:
        """This rank's (B, T, I / tp) to the summed (B, t, O)."""
        if self.groups.tp_size == 1:
            return F.linear(x, self.weight, self.bias)
        partial = F.linear(x, self.weight)  # the bias is added once, after the sum
        if self.sequence_parallel:
            return scatter_sum_sequence(partial, self.groups) + copy_to_tensor(self.bias, self.groups)
        return reduce_from_tensor(partial, self.groups) + self.bias


class LayerNorm(nn.Module):
    """LayerNorm over C. Its parameters are whole on every rank.

    Under sequence parallelism each rank sees part of the positions, so the parameters pass through `copy_to_tensor`,
    whose backward sums their gradients over the tensor-parallel ranks.
    """

    def __init__(
        self, name: str, size: int, eps: float, groups: Groups, sequence_parallel: bool, operators: Operators
    ) -> None:
        super().__init__()
        self.groups, self.eps, self.operators = groups, eps, operators
        self.sequence_parallel = sequence_parallel
        self.weight = make_parameter(f"{name}.weight", (size,), None, groups)
        self.bias = make_parameter(f"{name}.bias", (size,), None, groups)

    def _parameters_here(self) -> tuple[Tensor, Tensor]:
        if self.sequence_parallel:
            return copy_to_tensor(self.weight, self.groups), copy_to_tensor(self.bias, self.groups)
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, t, C) to (B, t, C)."""
        return self.operators.layer_norm(x, *self._parameters_here(), self.eps)


class AddLayerNorm(LayerNorm):
    """The same with dropout and the residual addition before it."""

    def forward(self, x: Tensor, residual: Tensor, dropout: Dropout) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """(B, t, C) twice, to the normalised sum and the sum."""
        if dropout.fuses:  # one pass without a stored mask, then LayerNorm of its result
            total = dropout.add(x, residual)
            return self.operators.layer_norm(total, *self._parameters_here(), self.eps), total
        return self.operators.add_layer_norm(dropout(x), residual, *self._parameters_here(), self.eps)


class VocabParallelEmbedding(nn.Module):
    """The (V, C) embedding table with its rows cut over the tensor-parallel ranks."""

    def __init__(self, name: str, rows: int, size: int, groups: Groups, sequence_parallel: bool) -> None:
        super().__init__()
        self.groups, self.sequence_parallel = groups, sequence_parallel
        self.weight = make_parameter(f"{name}.weight", (rows, size), 0, groups)
        self.start, self.stop = shard_of(self.weight).start, shard_of(self.weight).stop

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Token ids (B, T) to (B, t, C)."""
        if self.groups.tp_size == 1:
            return F.embedding(tokens_BT, self.weight)
        elsewhere_BT = (tokens_BT < self.start) | (tokens_BT >= self.stop)
        rows_BTC = F.embedding((tokens_BT - self.start).masked_fill(elsewhere_BT, 0), self.weight)
        partial_BTC = rows_BTC.masked_fill(elsewhere_BT[..., None], 0.0)
        leave = scatter_sum_sequence if self.sequence_parallel else reduce_from_tensor
        return leave(partial_BTC, self.groups)


def enter_head(hidden_BtC: Tensor, groups: Groups, sequence_parallel: bool) -> Tensor:
    """Hidden states (B, t, C) as each rank multiplies them with its rows of the token table: (B, T, C)."""
    enter = gather_sequence if sequence_parallel else copy_to_tensor
    return enter(hidden_BtC, groups)


class Dropout(nn.Module):
    """Dropout whose mask is shared by the tensor-parallel ranks, or differs between them, as the activation does.

    The default generator is seeded alike on all tensor-parallel ranks at each step. Replicated activations need the
    same mask there (`local=False`) and use it directly. Sharded ones need different masks: a number drawn from the
    default generator, mixed with the rank, seeds a generator of their own. Both draw from the default generator
    alike, so the ranks stay in step, and activation checkpointing, which restores it, repeats the mask.
    """

    def __init__(self, probability: float, groups: Groups, local: bool, operators: Operators | None = None) -> None:
        super().__init__()
        self.probability, self.groups, self.operators = probability, groups, operators
        self.local = local and groups.tp_size > 1

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if not self.local or not self.training or self.probability == 0.0:
            return F.dropout(x, self.probability, self.training)
        seed = int(torch.randint(2**48, ())) * 4096 + self.groups.tp_rank
        generator = torch.Generator(x.device).manual_seed(seed % 2**63)
        keep = torch.empty_like(x).bernoulli_(1.0 - self.probability, generator=generator)
        return x * keep / (1.0 - self.probability)

    @property
    def fuses(self) -> bool:
        """Whether `add` is one operator, and there is something to drop."""
        fused = self.operators is not None and self.operators.fused
        return fused and self.training and self.probability > 0.0

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """residual + dropout(x), in one pass where the operators are fused."""
        if self.operators is None or not self.fuses:
            return residual + self(x)
        return dropout_add(x, residual, self.probability, self.groups.tp_rank if self.local else 0)
