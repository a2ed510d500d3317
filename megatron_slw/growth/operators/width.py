"""How the dimensions of a model grow together, from its old to its new sizes.

Operators, all exact up to rounding for pre-LayerNorm models with a tied head:

- `staged` (arXiv 2203.06211): copies stay apart; a copied output reads the copy of each input with its number, so that
  matrices are block-diagonal. Heads and feed-forward units are multiplied.
- `clone` (HyperCloning, arXiv 2409.12903): the same copies, each output reading 1/n of each of the n copies.
- `net2net` (arXiv 1511.05641): the residual stream is copied whole, since LayerNorm is exact for uniform copies alone;
  heads and feed-forward units are copied by random selection, their outgoing weights divided by the copies' number.

What an integer factor leaves over is added: coordinates of the residual stream that hold the mean of the others
(LEMON, arXiv 2310.07999, section 4), heads and units with random inputs and zero outputs.

With k copies of d coordinates in D, r = k d / D, LayerNorm's variance is multiplied by r and its mean is the same, so
gains are multiplied by sqrt(r) and eps by r; the added coordinates come out of it as exactly zero. The head sums k
copies, so the final LayerNorm is divided by k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from megatron_slw.config.schema import ModelConfig
from megatron_slw.growth.operators.axis import Axis, extended, nested, selected, tiled
from megatron_slw.growth.operators.matrix import Share

WidthOperator = Literal["staged", "clone", "net2net"]


@dataclass(frozen=True)
class Width:
    """The growth of every dimension of a model."""

    residual: Axis
    """Coordinates of the residual stream."""
    heads: Axis
    head_dim: Axis
    ffn: Axis
    vocab: Axis
    """Rows of the token table without its padding."""
    padded_vocab_size: int
    positions: Axis
    share: Share
    snr_db: float | None
    """Of the noise that tells copies apart; None for none."""

    @property
    def residual_copies(self) -> int:
        """k, the whole copies of the old residual stream."""
        return int(self.residual.counts[0])

    @property
    def variance_ratio(self) -> float:
        """r, the new variance of the residual stream over the old one."""
        return self.residual_copies * self.residual.size / self.residual.new_size

    @cached_property
    def context(self) -> Axis:
        """(head, D): the inputs of the attention's projection."""
        return nested(self.heads, self.head_dim)

    @cached_property
    def qkv(self) -> Axis:
        """(head, q|k|v, D): the outputs of query_key_value."""
        return nested(self.heads, nested(tiled(3, 3), self.head_dim))

    @cached_property
    def query_gain(self) -> float:
        """What keeps q k / sqrt(head size): c copies of each entry in a head of D' give sqrt(D' / D) / c."""
        ratio = self.head_dim.new_size / self.head_dim.size
        return math.sqrt(ratio) / int(self.head_dim.counts[0])

    def qkv_rows(self, query: float, key: float, value: float) -> Tensor:
        """One factor for each row of query_key_value, fp64."""
        parts = torch.tensor([query, key, value], dtype=torch.float64)
        return parts.repeat_interleave(self.head_dim.new_size).repeat(self.heads.new_size)

    @property
    def is_uniform(self) -> bool:
        """Whether each dimension is whole copies alone, with head size, vocabulary and positions as they were."""
        same = all(axis.new_size == axis.size for axis in (self.head_dim, self.vocab, self.positions))
        return same and all(axis.is_uniform for axis in (self.residual, self.heads, self.ffn))


def width_of(old: ModelConfig, new: ModelConfig, operator: WidthOperator, snr_db: float | None, seed: int) -> Width:
    """The growth from the sizes `old` to `new`; vocab_size must be known in both.

    Args:
        old: the model's configuration.
        new: the same with any of hidden_size, num_attention_heads, ffn_hidden_size, vocab_size, seq_length raised.
        operator: see the top of the file.
        snr_db: of the noise between copies, None for none.
        seed: of net2net's selection.

    Raises:
        ValueError: a size would shrink.
    """
    if old.vocab_size is None or new.vocab_size is None:
        raise ValueError("the vocabulary size must be known")
    generator = torch.Generator().manual_seed(seed)

    def inner(size: int, new_size: int) -> Axis:
        return selected(size, new_size, generator) if operator == "net2net" else tiled(size, new_size)

    return Width(
        residual=tiled(old.hidden_size, new.hidden_size),
        heads=inner(old.num_attention_heads, new.num_attention_heads),
        head_dim=tiled(old.head_dim, new.head_dim),
        ffn=inner(old.ffn_size, new.ffn_size),
        vocab=extended(old.vocab_size, new.vocab_size),
        padded_vocab_size=new.padded_vocab_size,
        positions=extended(old.seq_length, new.seq_length),
        share="matching" if operator == "staged" else "even",
        snr_db=snr_db,
    )


def grown_epsilon(old: ModelConfig, new: ModelConfig) -> float:
    """LayerNorm's eps of the grown model: it is added to a variance that the growth multiplied by r."""
    k = new.hidden_size // old.hidden_size
    return old.layernorm_epsilon * (k * old.hidden_size / new.hidden_size)
