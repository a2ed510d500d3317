"""From the last hidden states to the loss: the output head and what is made of its output.

Shapes: B rows of this micro-batch, T tokens of a row, t = T / tensor-parallel size under sequence parallelism (else T),
C hidden size, V vocabulary columns of this rank, padding included.

The loss is made from all logits of a micro-batch or, where these are many (`ops.cross_entropy`), from hidden states and
token table a chunk of rows at a time. In the second case both leave the head in place of logits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from megatron_slw.config.schema import RunConfig
from megatron_slw.ops.backend import Operators, select_operators
from megatron_slw.ops.choice import picks_chunked_loss
from megatron_slw.parallel.cross_entropy import vocab_parallel_cross_entropy, vocab_parallel_linear_loss
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.layers import VocabParallelEmbedding, enter_head

Targets = tuple[Tensor, Tensor]
"""Labels (B, T) int64, and their weights (B, T) fp32."""
HeadOutput = Tensor | tuple[Tensor, Tensor]
"""Logits (B, T, V), or hidden states (B, T, C) and the token table (V, C)."""


def operators_of(config: RunConfig, groups: Groups) -> Operators:
    """The implementation that `ops.backend` names, on this rank's device."""
    return select_operators(config.ops.backend, groups.device.type)


def head_output(config: RunConfig, weight_VC: Tensor, x_BtC: Tensor, groups: Groups) -> HeadOutput:
    """What the loss is made of; a function of shapes, so that every tensor-parallel rank decides alike.

    Args:
        config: whose `ops.cross_entropy` chooses.
        weight_VC: this rank's rows of the token table.
        x_BtC: after the final LayerNorm.
        groups: of this rank.
    """
    x_BTC = enter_head(x_BtC, groups, config.parallel.sequence_parallel)
    columns = -(-config.model.padded_vocab_size // groups.tp_size)
    size = x_BTC.size(0) * x_BTC.size(1) * columns * x_BTC.element_size()
    if picks_chunked_loss(config.ops.cross_entropy, size, groups.tp_size, x_BTC.device.type):
        return x_BTC, weight_VC
    return F.linear(x_BTC, weight_VC)


def logits_of(output: HeadOutput) -> Tensor:
    """The logits (B, T, V) of what `head_output` gave."""
    return F.linear(*output) if isinstance(output, tuple) else output


class OutputHead(nn.Module):
    """Logits by the token table, or the loss. It registers the shared weight itself: ZeRO-3 gathers a module's own
    parameters, and only while it runs, so the loss is computed in here.
    """

    def __init__(self, config: RunConfig, embedding: VocabParallelEmbedding) -> None:
        super().__init__()
        self.config, self.groups = config, embedding.groups
        self.loss = WeightedLoss(config, embedding.groups)
        self.weight = embedding.weight

    def forward(self, x_BtC: Tensor, targets: Targets | None = None) -> Tensor:
        """(B, t, C) to (B, T, V), or to the loss of the targets."""
        if targets is None:
            return F.linear(enter_head(x_BtC, self.groups, self.config.parallel.sequence_parallel), self.weight)
        return self.loss(head_output(self.config, self.weight, x_BtC, self.groups), targets)


class WeightedLoss:
    """Sum over a micro-batch of label weight x negative log-likelihood.

    The weights carry the normalisation: the engines average over micro-batches and data-parallel ranks, so a weight
    is (micro-batches x data-parallel ranks) / labels of the global batch, and a masked label's is zero. The mean of
    such sums is the mean over the batch's real labels however these are spread over micro-batches; a mean per
    micro-batch would weigh a label more the more of its neighbours are masked.
    """

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        model = config.model
        if model.vocab_size is None:
            raise ValueError("the loss needs model.vocab_size: fill it from the dataset first")
        self.vocab_size, self.padded_vocab_size = model.vocab_size, model.padded_vocab_size
        self.groups, self.operators = groups, operators_of(config, groups)

    def __call__(self, output: HeadOutput, targets: Targets) -> Tensor:
        """What `head_output` gave, and labels with weights, to a scalar."""
        sizes = self.vocab_size, self.padded_vocab_size
        if isinstance(output, tuple):
            return vocab_parallel_linear_loss(*output, targets, *sizes, self.groups)
        labels_BT, weights_BT = targets
        loss_BT = vocab_parallel_cross_entropy(output, labels_BT, *sizes, self.groups, self.operators)
        return (loss_BT * weights_BT).sum()
