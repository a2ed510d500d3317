"""The forward pass of a checkpoint in fp64, read matrix by matrix: does the grown model compute what the old one did?

Nothing but the checkpoint format is shared with the training code, and no more than a few rows of a matrix are held
at a time. Dropout is off.

Legend: B rows, T tokens, C hidden size, H heads, D head size, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_slw.config.schema import ModelConfig
from megatron_slw.growth.operators import names
from megatron_slw.parallel.sharding import Shard

CHUNK_BYTES = 4 << 20
LOGIT_TOLERANCE, LOSS_TOLERANCE = 2e-5, 2e-6
"""Of the largest logit, and of the loss: rounding the grown weights to fp32 changed 5e-8 of a trained model's."""


class SlicedSource(Protocol):
    """A Checkpoint, or what reads like one."""

    def tensor(self, key: str, shard: Shard | None = None) -> Tensor:
        """A logical tensor, or a part of it."""


@dataclass(frozen=True)
class Comparison:
    """Both models on the same tokens."""

    before: float
    """Mean loss of the old model, in nats."""
    after: float
    """The grown one's, over the old vocabulary."""
    largest_difference: float
    """Of any logit."""
    largest_logit: float

    @property
    def equal(self) -> bool:
        """Whether they differ by no more than rounding."""
        logits = self.largest_difference <= LOGIT_TOLERANCE * self.largest_logit
        return logits and abs(self.after - self.before) <= LOSS_TOLERANCE * max(1.0, self.before)


class Reader:
    """The tensors of one model, a few rows at a time, in fp64."""

    def __init__(self, source: SlicedSource, model: ModelConfig) -> None:
        self.source, self.model = source, model

    def vector(self, name: str) -> Tensor:
        """A whole vector."""
        return self.source.tensor(f"weight/{name}").double()

    def rows(self, name: str, count: int, width: int) -> Iterator[tuple[int, Tensor]]:
        """The first row and the rows of each piece of a matrix (count, width)."""
        step = max(1, CHUNK_BYTES // (4 * width))
        for first in range(0, count, step):
            shard = Shard(name, (count, width), 0, first, min(count, first + step))
            yield first, self.source.tensor(f"weight/{name}", shard).double()

    def linear(self, x: Tensor, name: str, out: int) -> Tensor:
        """x W^T + b."""
        pieces = [x @ rows.T for _, rows in self.rows(f"{name}.weight", out, x.size(-1))]
        return torch.cat(pieces, -1) + self.vector(f"{name}.bias")

    def norm(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm over the last dimension."""
        weight, bias = self.vector(f"{name}.weight"), self.vector(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, self.model.layernorm_epsilon)

    def logits(self, hidden_BTC: Tensor, vocab_size: int) -> Iterator[Tensor]:
        """The logits of the first `vocab_size` tokens, in pieces of the same columns for models of one vocabulary."""
        model = self.model
        step = 1024
        for first in range(0, vocab_size, step):
            shape = (model.padded_vocab_size, model.hidden_size)
            shard = Shard(names.WORDS, shape, 0, first, min(vocab_size, first + step))
            yield hidden_BTC @ self.source.tensor(f"weight/{names.WORDS}", shard).double().T


def hidden_states(source: SlicedSource, model: ModelConfig, tokens_BT: Tensor) -> Tensor:
    """What the output head gets: (B, T, C) fp64."""
    reader = Reader(source, model)
    shape = (model.padded_vocab_size, model.hidden_size)
    x_BTC = torch.empty(*tokens_BT.shape, model.hidden_size, dtype=torch.float64)
    for token in tokens_BT.unique().tolist():
        row = source.tensor(f"weight/{names.WORDS}", Shard(names.WORDS, shape, 0, token, token + 1))
        x_BTC[tokens_BT == token] = row[0].double()
    length = tokens_BT.size(1)
    positions = Shard(names.POSITIONS, (model.seq_length, model.hidden_size), 0, 0, length)
    x_BTC += source.tensor(f"weight/{names.POSITIONS}", positions).double()
    for layer in range(model.num_layers):
        x_BTC = _layer(reader, f"layers.{layer}", x_BTC)
    return reader.norm(x_BTC, names.FINAL_NORM)


def _layer(reader: Reader, name: str, x_BTC: Tensor) -> Tensor:
    model = reader.model
    rows, length, size = x_BTC.shape
    mixed = reader.linear(reader.norm(x_BTC, f"{name}.input_layernorm"), f"{name}.{names.QKV}", 3 * size)
    heads = mixed.view(rows, length, model.num_attention_heads, 3, model.head_dim).permute(3, 0, 2, 1, 4)
    context_BHTD = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    context_BTC = context_BHTD.transpose(1, 2).reshape(rows, length, size)
    x_BTC = x_BTC + reader.linear(context_BTC, f"{name}.{names.OUT}", size)
    normed = reader.norm(x_BTC, f"{name}.post_attention_layernorm")
    units_BTF = reader.linear(normed, f"{name}.{names.FC}", model.ffn_size)
    units_BTF = F.gelu(units_BTF, approximate="tanh" if model.activation == "gelu_tanh" else "none")
    return x_BTC + reader.linear(units_BTF, f"{name}.{names.PROJ}", size)


@torch.no_grad()
def compare(
    before: SlicedSource, old: ModelConfig, after: SlicedSource, new: ModelConfig, ids_BT: Tensor
) -> Comparison:
    """Run both models on the same tokens.

    Args:
        before: the old model's weights.
        old: its sizes.
        after: the grown model's weights.
        new: its sizes.
        ids_BT: token ids (B, T + 1) of the old vocabulary, T at most the old length.
    """
    inputs_BT, labels_N = ids_BT[:, :-1], ids_BT[:, 1:].flatten()
    vocab = old.vocab_size or 0
    readers = (Reader(before, old), Reader(after, new))
    states = (hidden_states(before, old, inputs_BT), hidden_states(after, new, inputs_BT))
    sums = [torch.full((len(labels_N),), -torch.inf, dtype=torch.float64) for _ in states]
    targets = [torch.zeros_like(total) for total in sums]
    difference = largest = 0.0
    first = 0
    pairs = (reader.logits(hidden, vocab) for reader, hidden in zip(readers, states, strict=True))
    for pieces in zip(*pairs, strict=True):
        flat = [piece.flatten(0, 1) for piece in pieces]
        inside = (labels_N >= first) & (labels_N < first + flat[0].size(1))
        for i, logits_NV in enumerate(flat):
            sums[i] = torch.logaddexp(sums[i], logits_NV.logsumexp(1))
            targets[i][inside] = logits_NV[inside, labels_N[inside] - first]
        difference = max(difference, float((flat[0] - flat[1]).abs().max()))
        largest = max(largest, float(flat[0].abs().max()))
        first += flat[0].size(1)
    losses = [float((total - target).mean()) for total, target in zip(sums, targets, strict=True)]
    return Comparison(losses[0], losses[1], difference, largest)
