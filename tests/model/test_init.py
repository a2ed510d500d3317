"""Initial values depend on seed and name alone, and are scaled as GPT-2's."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_slw.model.gpt import GPT
from megatron_slw.model.init import initial_value, initialize_weights
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.parallel.sharding import Shard, sharded_parameters
from megatron_slw.testing import tiny_config

MODEL = tiny_config("unused", model__num_layers=8, model__init_method_std=0.02).model


@pytest.mark.parametrize(
    ("name", "shape", "std"),
    [
        ("embedding.word_embeddings.weight", (384, 256), 0.02 * math.sqrt(300 / 384)),
        ("embedding.position_embeddings.weight", (256, 256), 0.02),
        ("layers.3.self_attention.query_key_value.weight", (768, 256), 0.02),
        ("layers.3.self_attention.dense.weight", (256, 256), 0.02 / 4),
        ("layers.3.mlp.dense_h_to_4h.weight", (1024, 256), 0.02),
        ("layers.3.mlp.dense_4h_to_h.weight", (256, 1024), 0.02 / 4),
    ],
)
def test_standard_deviation(name: str, shape: tuple[int, ...], std: float) -> None:
    value = initial_value(Shard(name, shape), MODEL, seed=1)
    assert value.std().item() == pytest.approx(std, rel=0.02)
    assert abs(value.mean().item()) < 4 * std / math.sqrt(value.numel()), "not centred on zero"


def test_layernorms_are_ones_and_biases_zeros() -> None:
    assert torch.equal(initial_value(Shard("layers.0.input_layernorm.weight", (8,)), MODEL, 1), torch.ones(8))
    for name in ("layers.0.input_layernorm.bias", "final_layernorm.bias", "layers.0.mlp.dense_h_to_4h.bias"):
        assert torch.equal(initial_value(Shard(name, (8,)), MODEL, 1), torch.zeros(8)), name


def test_padding_rows_are_zero() -> None:
    table = initial_value(Shard("embedding.word_embeddings.weight", (384, 32)), MODEL, 1)
    assert not table[300:].any() and table[:300].all(), "real rows are zero or padding rows are not"


def test_seed_and_name_decide_alone() -> None:
    def value(name: str, seed: int) -> torch.Tensor:
        return initial_value(Shard(name, (16, 16)), MODEL, seed)

    torch.manual_seed(1)
    first = value("layers.0.mlp.dense_h_to_4h.weight", 1)
    torch.manual_seed(2)
    assert torch.equal(first, value("layers.0.mlp.dense_h_to_4h.weight", 1)), "it depends on the global generator"
    assert not torch.equal(first, value("layers.0.mlp.dense_h_to_4h.weight", 2)), "the seed has no effect"
    assert not torch.equal(first, value("layers.1.mlp.dense_h_to_4h.weight", 1)), "two layers start alike"


def test_every_parameter_is_filled() -> None:
    config = tiny_config("unused")
    model = GPT(config, one_process_groups())
    for param in model.parameters():
        torch.nn.init.constant_(param, math.nan)
    initialize_weights(model, config.model, seed=3)
    assert not any(torch.isnan(p).any() for p in model.parameters()), "a parameter was left out"
    names = [shard.name for shard, _ in sharded_parameters(model)]
    assert len(names) == len(set(names)), "two parameters have one name"
