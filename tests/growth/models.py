"""Small fp64 models as plain tensors, for growth to be proved on.

Every tensor is random, biases and gains too, and of a size that makes logits of about 7: what is not preserved shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.config.schema import ModelConfig, RunConfig
from megatron_slw.growth.operators.width import grown_epsilon
from megatron_slw.growth.stage import GrownTensors, Stage
from megatron_slw.model.gpt import GPT
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.testing import tiny_config

SMALL = {
    "num_layers": 2, "hidden_size": 12, "num_attention_heads": 3, "ffn_hidden_size": None, "seq_length": 10,
    "vocab_size": 200,
}  # fmt: skip


@dataclass(frozen=True)
class Tensors:
    """A TensorSource in memory."""

    by_key: dict[str, Tensor]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: tuple(value.shape) for key, value in self.by_key.items()}

    def tensor(self, key: str) -> Tensor:
        return self.by_key[key].clone()


def small_config(**changes: Any) -> RunConfig:
    fields = {f"model__{name}": value for name, value in (SMALL | changes).items()}
    return tiny_config("unused", **fields, curriculum=None)


def grown_model(old: ModelConfig, **sizes: Any) -> ModelConfig:
    new = ModelConfig.model_validate(old.model_dump() | sizes)
    return new.model_copy(update={"layernorm_epsilon": grown_epsilon(old, new)})


def random_tensors(config: RunConfig, seed: int = 0) -> Tensors:
    """Weights and moments of a model in fp64; eps is not small beside the variances."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for shard, _ in sharded_parameters(GPT(config, one_process_groups())):
        value = torch.randn(shard.shape, generator=generator, dtype=torch.float64) * 0.5
        if shard.name.endswith("layernorm.weight"):
            value += 1.0
        if shard.name == "embedding.word_embeddings.weight":
            value[config.model.vocab_size :] = 0.0
        found[f"weight/{shard.name}"] = value
    return Tensors(found)


def with_moments(tensors: Tensors, seed: int = 5) -> Tensors:
    """The same with random moments of about a gradient's size."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(tensors.by_key)
    for key, value in tensors.by_key.items():
        name = key.removeprefix("weight/")
        first = torch.randn(value.shape, generator=generator, dtype=torch.float64) * 1e-2
        found[f"exp_avg/{name}"] = first
        found[f"exp_avg_sq/{name}"] = first.square() + 1e-5 * torch.rand(value.shape, generator=generator)
    return Tensors(found)


def grow(tensors: Tensors, old: ModelConfig, stage: Stage, **options: Any) -> Tensors:
    grown = GrownTensors(tensors, old, stage, seed=7, **options)
    made = {key: grown.tensor(key) for key in grown.shapes}
    for key, value in made.items():
        assert tuple(value.shape) == grown.shapes[key], f"{key} has shape {tuple(value.shape)}"
    return Tensors(made)


def build(config: RunConfig, tensors: Mapping[str, Tensor]) -> GPT:
    """The model itself, in fp64."""
    model = GPT(config, one_process_groups()).double()
    with torch.no_grad():
        for shard, param in sharded_parameters(model):
            param.copy_(tensors[f"weight/{shard.name}"])
    return model


def build_grown(config: RunConfig, stage: Stage, tensors: Tensors) -> GPT:
    return build(config.model_copy(update={"model": stage.model}), tensors.by_key)


def tokens(config: RunConfig, rows: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Token ids and labels (rows, seq_length)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, config.model.seq_length + 1)
    ids = torch.randint(config.model.vocab_size or 1, shape, generator=generator)
    return ids[:, :-1], ids[:, 1:]


def loss_of(model: GPT, batch: tuple[Tensor, Tensor], vocab_size: int) -> Tensor:
    logits = model(batch[0])[..., :vocab_size]
    return F.cross_entropy(logits.flatten(0, 1), batch[1].flatten())
