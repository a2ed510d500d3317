"""A GPT-2 / GPT-3 decoder: pre-LayerNorm, learned positions, GELU, biases, tied output head.

Shapes: B rows of this micro-batch, T tokens of a row (read from the input, so that the length may change at any
step), t = T / tensor-parallel size under sequence parallelism (else T), C hidden size, H attention heads of this
rank, D head size, V vocabulary columns of this rank.

Where positions or attention begin anew with each document (data.reset_position_ids, data.reset_attention_mask), the
documents of the rows come with the tokens as document_ids_BT; else that is None, and attention is plainly causal.

Logical tensor names are Megatron's. The query_key_value rows are stored head by head, (head, q|k|v, D), so that the
block of a tensor-parallel rank is a plain slice of whole heads.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megatron_slw.config.schema import RunConfig
from megatron_slw.model.documents import document_attention_bias, positions_in_documents
from megatron_slw.model.head import OutputHead, Targets, operators_of
from megatron_slw.ops.backend import attend
from megatron_slw.ops.choice import picks_fused_softmax
from megatron_slw.parallel.collectives import copy_to_tensor
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.layers import (
    AddLayerNorm,
    ColumnParallelLinear,
    ColumnParallelLinearGelu,
    Dropout,
    LayerNorm,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from megatron_slw.parallel.sharding import make_parameter

WORD_EMBEDDINGS = "embedding.word_embeddings"


class WordEmbedding(VocabParallelEmbedding):
    """The token table, shared with the output head."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        model = config.model
        sequence_parallel = config.parallel.sequence_parallel
        super().__init__(WORD_EMBEDDINGS, model.padded_vocab_size, model.hidden_size, groups, sequence_parallel)


class PositionEmbedding(nn.Module):
    """Adds learned positions, then drops out. A layer of its own: only the first pipeline stage needs the table."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        self.groups = groups
        self.sequence_parallel = config.parallel.sequence_parallel
        self.reset_position_ids = config.data.reset_position_ids
        shape = (config.model.seq_length, config.model.hidden_size)
        self.weight = make_parameter("embedding.position_embeddings.weight", shape, None, groups)
        self.dropout = Dropout(config.model.hidden_dropout, groups, local=self.sequence_parallel)

    def forward(self, x_BtC: Tensor, document_ids_BT: Tensor | None = None) -> Tensor:
        """(B, t, C), and the documents of whole rows where positions begin anew with each, to (B, t, C)."""
        length = x_BtC.size(1)
        weight: Tensor = self.weight
        first = 0
        if self.sequence_parallel:  # this rank holds positions [rank * t, rank * t + t)
            weight = copy_to_tensor(weight, self.groups)
            first = self.groups.tp_rank * length
        if self.reset_position_ids and document_ids_BT is not None:
            positions_Bt = positions_in_documents(document_ids_BT)[:, first : first + length]
            return self.dropout(x_BtC + F.embedding(positions_Bt, weight))
        return self.dropout(x_BtC + weight[first : first + length])


class SelfAttention(nn.Module):
    """Causal multi-head attention; the heads are cut over the tensor-parallel ranks."""

    def __init__(self, config: RunConfig, groups: Groups, name: str) -> None:
        super().__init__()
        size, sp = config.model.hidden_size, config.parallel.sequence_parallel
        self.groups = groups
        self.head_dim = config.model.head_dim
        self.dropout, self.attention = config.model.attention_dropout, config.model.attention
        self.operators = operators_of(config, groups)
        self.query_key_value = ColumnParallelLinear(f"{name}.query_key_value", size, 3 * size, groups, sp)
        self.dense = RowParallelLinear(f"{name}.dense", size, size, groups, sp)

    def forward(self, x_BtC: Tensor, bias_B1TT: Tensor | None = None) -> Tensor:
        """(B, t, C) to (B, t, C); the bias is added to the scores and takes the place of the causal mask."""
        mixed = self.query_key_value(x_BtC)
        rows, length, width = mixed.shape
        heads = width // (3 * self.head_dim)
        q_BHTD, k_BHTD, v_BHTD = mixed.view(rows, length, heads, 3, self.head_dim).permute(3, 0, 2, 1, 4)
        context_BHTD = self._attend(q_BHTD, k_BHTD, v_BHTD, bias_B1TT)
        return self.dense(context_BHTD.transpose(1, 2).reshape(rows, length, heads * self.head_dim))

    def _attend(self, q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, bias_B1TT: Tensor | None) -> Tensor:
        dropout, causal = self.dropout if self.training else 0.0, bias_B1TT is None
        fused, device = self.operators.fused, q_BHTD.device.type
        if picks_fused_softmax(self.attention, fused, device, q_BHTD.size(2), self.head_dim):
            run = partial(attend, q_BHTD, k_BHTD, v_BHTD, bias_B1TT, dropout)
        else:
            run = partial(F.scaled_dot_product_attention, q_BHTD, k_BHTD, v_BHTD, bias_B1TT, dropout, causal)
        if dropout == 0.0 or self.groups.tp_size == 1:
            return run()
        # The ranks hold different heads and share the default generator's state: each forks it with a seed of its
        # own, else head h of every rank would drop the same entries.
        seed = int(torch.randint(2**48, ())) * 4096 + self.groups.tp_rank
        devices = [q_BHTD.device] if q_BHTD.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed % 2**63)
            return run()


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: RunConfig, groups: Groups, name: str) -> None:
        super().__init__()
        size, ffn, sp = config.model.hidden_size, config.model.ffn_size, config.parallel.sequence_parallel
        tanh, operators = config.model.activation == "gelu_tanh", operators_of(config, groups)
        self.dense_h_to_4h = ColumnParallelLinearGelu(f"{name}.dense_h_to_4h", size, ffn, groups, sp, operators, tanh)
        self.dense_4h_to_h = RowParallelLinear(f"{name}.dense_4h_to_h", ffn, size, groups, sp)

    def forward(self, x_BtC: Tensor) -> Tensor:
        """(B, t, C) to (B, t, C)."""
        return self.dense_4h_to_h(self.dense_h_to_4h(x_BtC))


class TransformerLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). Recomputed in the backward pass if the configuration says so."""

    def __init__(self, config: RunConfig, groups: Groups, index: int) -> None:
        super().__init__()
        model, sp, name = config.model, config.parallel.sequence_parallel, f"layers.{index}"
        size, eps, operators = model.hidden_size, model.layernorm_epsilon, operators_of(config, groups)
        self.recompute = config.training.activation_checkpointing
        self.input_layernorm = LayerNorm(f"{name}.input_layernorm", size, eps, groups, sp, operators)
        self.self_attention = SelfAttention(config, groups, f"{name}.self_attention")
        post_name = f"{name}.post_attention_layernorm"
        self.post_attention_layernorm = AddLayerNorm(post_name, size, eps, groups, sp, operators)
        self.mlp = MLP(config, groups, f"{name}.mlp")
        self.dropout = Dropout(model.hidden_dropout, groups, sp, operators)

    def forward(self, x_BtC: Tensor, bias_B1TT: Tensor | None = None) -> Tensor:
        """(B, t, C) to (B, t, C); see `SelfAttention` for the bias."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._layer, x_BtC, bias_B1TT, use_reentrant=False)
        return self._layer(x_BtC, bias_B1TT)

    def _layer(self, x_BtC: Tensor, bias_B1TT: Tensor | None) -> Tensor:
        attended_BtC = self.self_attention(self.input_layernorm(x_BtC), bias_B1TT)
        normal_BtC, x_BtC = self.post_attention_layernorm(attended_BtC, x_BtC, self.dropout)
        return self.dropout.add(self.mlp(normal_BtC), x_BtC)


class FinalLayerNorm(LayerNorm):
    """The LayerNorm before the output head."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        model, sp = config.model, config.parallel.sequence_parallel
        operators = operators_of(config, groups)
        super().__init__("final_layernorm", model.hidden_size, model.layernorm_epsilon, groups, sp, operators)


class GPT(nn.Module):
    """The whole model on one pipeline stage: token ids (B, T) to this rank's logits (B, T, V), or to the loss."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        super().__init__()
        self.reset_attention_mask = config.data.reset_attention_mask
        self.word_embeddings = WordEmbedding(config, groups)
        self.position_embeddings = PositionEmbedding(config, groups)
        self.layers = nn.ModuleList(TransformerLayer(config, groups, i) for i in range(config.model.num_layers))
        self.final_layernorm = FinalLayerNorm(config, groups)
        self.output_head = OutputHead(config, self.word_embeddings)

    def forward(
        self, tokens_BT: Tensor, document_ids_BT: Tensor | None = None, targets: Targets | None = None
    ) -> Tensor:
        """Token ids (B, T) to this rank's columns of the logits (B, T, V); with targets to their loss, a scalar.

        document_ids_BT None takes each row for one document.
        """
        x = self.position_embeddings(self.word_embeddings(tokens_BT), document_ids_BT)
        bias = None
        if self.reset_attention_mask and document_ids_BT is not None:
            bias = document_attention_bias(document_ids_BT, x.dtype)
        for layer in self.layers:
            x = layer(x, bias)
        return self.output_head(self.final_layernorm(x), targets=targets)
