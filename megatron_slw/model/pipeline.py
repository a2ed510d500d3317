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
from megatron_slw.model.documents import document_attention_bias
from megatron_slw.model.gpt import (
    FinalLayerNorm,
    PositionEmbedding,
    TransformerLayer,
    WordEmbedding,
)
from megatron_slw.model.head import HeadOutput, WeightedLoss, head_output
from megatron_slw.parallel.groups import Groups


class GPTPipeline(PipelineModule):
    """Runs the layers of one stage. Where attention is cut at documents, their ids travel on beside the activations.

    DeepSpeed sends tuples of tensors, and no gradient comes back for integers. Every stage needs the ids of the
    micro-batch that it is at, which only the first and the last read themselves.
    """

    def __init__(self, config: RunConfig, groups: Groups, layers: list[LayerSpec]) -> None:
        super().__init__(
            layers,
            topology=groups.topology,
            loss_fn=WeightedLoss(config, groups),
            partition_method="type:^TransformerLayer$",
            activation_checkpoint_interval=0,
        )
        self.reset_attention_mask = config.data.reset_attention_mask
        self.hand_on = self.reset_attention_mask and groups.pp_rank < groups.pp_size - 1

    def forward(self, inputs: Tensor | tuple[Tensor, ...]) -> HeadOutput:
        """(tokens (B, T) or activations (B, t, C), document ids (B, T) where they are needed) to what follows.

        The activations come alone where nothing else was sent.
        """
        x, *documents = inputs if isinstance(inputs, tuple) else (inputs,)
        bias = None
        for layer in self.forward_funcs:
            if isinstance(layer, PositionEmbedding):
                x = layer(x, *documents)
            elif isinstance(layer, TransformerLayer):
                if bias is None and self.reset_attention_mask:
                    bias = document_attention_bias(documents[0], x.dtype)
                x = layer(x, bias)
            else:
                x = layer(x)
        return (x, documents[0]) if self.hand_on else x


def build_pipeline(config: RunConfig, groups: Groups) -> GPTPipeline:
    """The GPT of `config`, of which this rank builds its stage alone."""

    def head(embedding: WordEmbedding, x_BtC: Tensor) -> HeadOutput:
        return head_output(config, embedding.weight, x_BtC, groups)

    layers = [
        TiedLayerSpec("word_embeddings", WordEmbedding, config, groups, tied_weight_attr="weight"),
        LayerSpec(PositionEmbedding, config, groups),
        *(LayerSpec(TransformerLayer, config, groups, i) for i in range(config.model.num_layers)),
        LayerSpec(FinalLayerNorm, config, groups),
        TiedLayerSpec("word_embeddings", WordEmbedding, config, groups, forward_fn=head, tied_weight_attr="weight"),
    ]
    with torch.no_grad():  # it broadcasts the tied weights, which autograd would otherwise record
        return GPTPipeline(config, groups, layers)
