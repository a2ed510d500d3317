"""Initial values that depend on (seed, parameter name) alone, so that every layout starts from the same model.

GPT-2's scheme: normal(0, init_method_std) for matrices and tables, the two projections back into the residual stream
scaled by 1 / sqrt(2 x layers) ("Language Models are Unsupervised Multitask Learners", section 2.3), LayerNorm ones,
biases zeros.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from megatron_slw.config.schema import ModelConfig
from megatron_slw.model.gpt import WORD_EMBEDDINGS
from megatron_slw.parallel.sharding import Shard, sharded_parameters


def name_seed(seed: int, name: str) -> int:
    """A 63-bit generator seed from the run's seed and a name; hashlib, because hash() differs between processes."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def initial_value(shard: Shard, model: ModelConfig, seed: int) -> Tensor:
    """The whole logical tensor in fp32; the caller slices its block."""
    if shard.name.endswith("layernorm.weight"):
        return torch.ones(shard.shape)
    if shard.name.endswith(".bias"):
        return torch.zeros(shard.shape)
    std = model.init_method_std
    if shard.name.endswith(("self_attention.dense.weight", "mlp.dense_4h_to_h.weight")):
        std /= math.sqrt(2.0 * model.num_layers)
    generator = torch.Generator().manual_seed(name_seed(seed, shard.name))
    value = torch.randn(shard.shape, generator=generator) * std
    if shard.name == f"{WORD_EMBEDDINGS}.weight":
        value[model.vocab_size :] = 0.0  # padding rows: never an input, left out of the loss, so they stay zero
    return value


@torch.no_grad()
def initialize_weights(module: nn.Module, model: ModelConfig, seed: int) -> None:
    """Fill every parameter of `module` with its block of the initial value."""
    for shard, param in sharded_parameters(module):
        param.copy_(shard.slice(initial_value(shard, model, seed)))
