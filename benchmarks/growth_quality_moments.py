"""The optimizer's state after a growth as others have it: fresh, or as the published code leaves it.

The checkpoint that grow_checkpoint.py wrote has it exact: tiled into every block, times s or its square, and zero for
new layers. This replaces it in an engine that has loaded such a checkpoint and not stepped yet.

`published` is what the code of arXiv 2203.06211 does when it runs. Width: both moments block-diagonal, exp_avg / 2 and
exp_avg_sq / 4, those of the final LayerNorm copied. Depth: each layer is copied, not made an identity, the copy behind
gets the moments, and those of the layer itself become what was meant for an identity layer: ones on the diagonals of
its matrices, zero elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.growth_quality_arms import Moments
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.growth.operators import names
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import WEIGHT, tensor_kinds, write_tensor, zero_optimizer_state


def replace_moments(engine: Engine, small: Checkpoint, moments: Moments) -> None:
    """Set the moments of a grown model.

    Args:
        engine: one process, with the grown checkpoint loaded.
        small: the checkpoint before the growth.
        moments: exact leaves them.
    """
    if moments == "exact":
        return
    if moments == "fresh":
        zero_optimizer_state(engine)
        return
    depth = engine.config.model.num_layers // small.config.model.num_layers
    for shard, param in sharded_parameters(engine.ds.module):
        layer, family = names.split_name(shard.name)
        for kind in tensor_kinds(engine):
            if kind == WEIGHT:
                continue
            source = layer if layer is None else layer // depth
            moment = small.tensor(f"{kind}/{names.layer_name(source, family)}")
            if depth > 1 and layer is not None and layer % depth == 0:
                moment = identity_moment(moment, family, small.config.model.head_dim)
            write_tensor(engine, param, kind, published_width(moment, shard.shape, family, kind))


def identity_moment(moment: Tensor, family: str, head_size: int) -> Tensor:
    """Ones on the diagonal of each square part of a matrix, zero elsewhere; vectors are zero.

    Args:
        moment: any tensor of a layer, for its shape.
        family: see `names`.
        head_size: query_key_value's rows are (head, q|k|v, head size).
    """
    result = torch.zeros_like(moment)
    if moment.dim() == 1:
        return result
    if family.startswith(names.QKV):
        size = moment.size(1)
        diagonal = torch.eye(size).view(-1, 1, head_size, size)
        return diagonal.expand(-1, 3, -1, -1).reshape(moment.shape).clone()
    return result.fill_diagonal_(1.0)


def published_width(moment: Tensor, shape: tuple[int, ...], family: str, kind: str) -> Tensor:
    """A moment of a model k times as wide, k = 1 included: block-diagonal matrices, copied vectors and tables."""
    k = shape[-1] // moment.size(-1)
    if k == 1:
        return moment
    if family in (names.WORDS, names.POSITIONS):
        grown = moment.repeat(1, k)
    elif moment.dim() == 1:
        grown = moment.repeat(k)
    else:
        grown = torch.block_diag(*[moment] * k)
    if family.startswith(names.FINAL_NORM):
        return grown
    return grown / (k if kind == "exp_avg" else k * k)
