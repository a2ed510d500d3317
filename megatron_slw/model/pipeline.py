"""The same layers as a DeepSpeed pipeline.

The token table is on the first and on the last stage (TiedLayerSpec sums their gradients); positions are a layer of
their own, so that the last stage holds no copy of them. Stages are cut by `type:TransformerLayer`, equal numbers of
layers each, so the final LayerNorm always shares the last stage with the head: a stage that holds nothing but tied
weights crashes DeepSpeed's bf16 ZeRO-1 norm.
"""

from __future__ import annotations

import torch
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from torch import Tensor

from megatron_slw.config.schema import RunConfig
from megatron_slw.model.gpt import (
    FinalLayerNorm,
    PositionEmbedding,
    TransformerLayer,
    WeightedLoss,
    WordEmbedding,
)
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.layers import vocab_parallel_logits


def _tied_logits(embedding: WordEmbedding, x_BtC: Tensor) -> Tensor:
    return vocab_parallel_logits(x_BtC, embedding.weight, embedding.groups, embedding.sequence_parallel)


def build_pipeline(config: RunConfig, groups: Groups) -> PipelineModule:
    """The GPT of `config`, of which this rank builds its stage alone."""
    layers = [
        TiedLayerSpec("word_embeddings", WordEmbedding, config, groups, tied_weight_attr="weight"),
        LayerSpec(PositionEmbedding, config, groups),
        *(LayerSpec(TransformerLayer, config, groups, i) for i in range(config.model.num_layers)),
        LayerSpec(FinalLayerNorm, config, groups),
        TiedLayerSpec(
            "word_embeddings", WordEmbedding, config, groups, forward_fn=_tied_logits, tied_weight_attr="weight"
        ),
    ]
    with torch.no_grad():  # it broadcasts the tied weights, which autograd would otherwise record
        return PipelineModule(
            layers,
            topology=groups.topology,
            loss_fn=WeightedLoss(config.model, groups),
            partition_method="type:^TransformerLayer$",
            activation_checkpoint_interval=0,
        )
