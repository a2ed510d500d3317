"""Forward passes of any shape without a training step, through all pipeline stages.

DeepSpeed's own evaluation gives the mean of a loss. Scoring wants the logits, for batches of changing shapes; it does
not need the engine's buffers, which keep the shape of the training step as it was.

Shapes: B rows, T tokens of a row, t = T / tensor-parallel size under sequence parallelism (else T), C hidden size,
V vocabulary columns of this rank.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from megatron_slw.config.schema import RunConfig
from megatron_slw.model.head import logits_of
from megatron_slw.parallel.groups import Groups

Forward = Callable[[Tensor, Tensor | None], Tensor | None]
"""Token ids (B, T), and document ids (B, T) for a model that tracks documents, to this rank's logits (B, T, V) on the
last pipeline stage, None on the others. Collective over a replica."""


def forward_of(module: Callable[..., Any], config: RunConfig, groups: Groups) -> Forward:
    """The forward pass of a `GPT`, of DeepSpeed's engine around one, or of one stage, a `GPTPipeline`."""
    if groups.pp_size > 1:
        if not isinstance(module, nn.Module):
            raise TypeError(f"a pipeline stage must be a module, not {type(module).__name__}")
        return partial(_stage, module, config, groups)

    def whole(tokens_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
        return module(tokens_BT) if documents_BT is None else module(tokens_BT, documents_BT)

    return whole


def _stage(
    module: nn.Module, config: RunConfig, groups: Groups, tokens_BT: Tensor, documents_BT: Tensor | None
) -> Tensor | None:
    """Receive from the stage before, compute, hand on. Stages work on consecutive batches at the same time."""
    x = tokens_BT if groups.pp_rank == 0 else _received(module, config, groups, tokens_BT)
    out = module(x if documents_BT is None else (x, documents_BT))
    if groups.pp_rank == groups.pp_size - 1:
        return logits_of(out)
    activations_BtC = out[0] if isinstance(out, tuple) else out  # every rank knows the documents
    dist.send(activations_BtC.contiguous(), _neighbour(groups, 1))
    return None


def _received(module: nn.Module, config: RunConfig, groups: Groups, tokens_BT: Tensor) -> Tensor:
    rows, length = tokens_BT.shape
    part = length // groups.tp_size if config.parallel.sequence_parallel else length
    dtype = next(module.parameters()).dtype
    x_BtC = torch.empty(rows, part, config.model.hidden_size, dtype=dtype, device=tokens_BT.device)
    dist.recv(x_BtC, _neighbour(groups, -1))
    return x_BtC


def _neighbour(groups: Groups, distance: int) -> int:
    """The rank with the same place in the next stage, or in the one before."""
    place = {"pipe": groups.pp_rank + distance, "data": groups.dp_rank, "model": groups.tp_rank}
    return int(groups.topology.get_rank(**place))
