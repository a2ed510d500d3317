"""A matrix whose rows and columns grow, so that it computes what it computed before.

Legend: O, I old rows and columns (outputs, inputs); o, i new ones. With a row map r and a column map c,

    W'[o, i] = share(o, i) W[r(o), c(i)] + noise(o, i),    sum of share over the copies i of one input = 1,
                                                           sum of noise over them = 0.

Copies of an input have equal values, so every copy of an output is what its source was, whatever the noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from megatron_slw.growth.operators.axis import Axis

CHUNK_ENTRIES = 1 << 20  # of a matrix that exist beside it
Share = Literal["matching", "even"]
"""matching: a copy of an output reads the copy of each input with its own number, modulo the number of copies (the
block-diagonal of arXiv 2203.06211); even: it reads 1/n of each of n copies (arXiv 2409.12903). Matching is even where
the copies of an input would be read unequally: by 2 copies of the outputs of 3 copies of the inputs."""


def expand_matrix(weight_OI: Tensor, rows: Axis, columns: Axis, share: Share) -> Tensor:
    """The shared copies of W; new rows and columns are zero.

    Args:
        weight_OI: the old matrix.
        rows: how its outputs grow.
        columns: how its inputs grow.
        share: how an output's weights are spread over the copies of an input.
    """
    k_o, k_i = rows.tiles, columns.tiles
    outputs, inputs = rows.equal_counts, columns.equal_counts
    if not outputs or not inputs or outputs % inputs:
        share = "even"
    if k_o is not None and k_i is not None:
        return _expand_tiles(weight_OI, k_o, k_i, share)
    old_i = ~columns.is_new
    even_i = old_i.to(weight_OI.dtype) / columns.copies.to(weight_OI.dtype)

    def share_of(part: slice) -> Tensor:
        if share == "even":
            return even_i
        return (rows.copy[part, None] % columns.copies == columns.copy) & old_i

    return _gather(weight_OI, rows, columns, share_of)


def _expand_tiles(weight_OI: Tensor, k_o: int, k_i: int, share: Share) -> Tensor:
    """Whole copies in blocks: the same as above, several times faster."""
    if share == "even":
        return (weight_OI / k_i if k_i > 1 else weight_OI).repeat(k_o, k_i)
    height, width = weight_OI.shape
    grown_oi = weight_OI.new_zeros(height * k_o, width * k_i)
    for a in range(k_o):
        b = a % k_i  # k_i divides k_o
        grown_oi[a * height : (a + 1) * height, b * width : (b + 1) * width] = weight_OI
    return grown_oi


def copy_matrix(weight_OI: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """W[r(o), c(i)] in every block, zero in new rows and columns: the shape that gradients of W' have."""
    k_o, k_i = rows.tiles, columns.tiles
    if k_o is not None and k_i is not None:
        return weight_OI.repeat(k_o, k_i)
    old_i = ~columns.is_new
    return _gather(weight_OI, rows, columns, lambda _: old_i)


def _gather(weight_OI: Tensor, rows: Axis, columns: Axis, factor: Callable[[slice], Tensor]) -> Tensor:
    """W[r(o), c(i)] times the factor of each range of new rows; new rows are zero. Some rows at a time."""
    grown_oi = weight_OI.new_empty(rows.new_size, columns.new_size)
    step = max(1, CHUNK_ENTRIES // columns.new_size)
    for first in range(0, rows.new_size, step):
        part = slice(first, first + step)
        picked_oi = weight_OI.index_select(0, rows.filled[part]).index_select(1, columns.filled)
        picked_oi *= factor(part)
        picked_oi[rows.is_new[part]] = 0.0
        grown_oi[part] = picked_oi
    return grown_oi


def add_paired_noise(
    grown_oi: Tensor, weight_OI: Tensor, columns: Axis, snr_db: float, generator: torch.Generator
) -> None:
    """Add noise that breaks the symmetry of copies without changing what the matrix computes, in place.

    Drawn for each entry, less its mean over the copies of the same input; for two copies that is +e and -e
    (arXiv 2409.12903, section 3.3). Its power is `snr_db` decibels below that of an even share W / n. Inputs that
    have one copy get none.
    """
    if not bool((columns.copies > 1).any()):
        return
    copies = columns.copies.to(weight_OI.dtype)
    amplitude = rms(weight_OI) * 10 ** (-snr_db / 20)
    several = (copies > 1) & ~columns.is_new
    scale_i = torch.where(several, amplitude / (copies * (copies - 1)).clamp(min=1).sqrt(), 0.0).to(weight_OI.dtype)
    for rows_oi in grown_oi.split(max(1, CHUNK_ENTRIES // columns.new_size)):
        rows_oi.addcmul_(_cancelling(len(rows_oi), columns, weight_OI.dtype, generator), scale_i)


def _cancelling(rows: int, columns: Axis, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal numbers less their mean over the copies of an input: (rows, new columns), variance 1 - 1 / copies."""
    if columns.tiles == 2:  # half the draws
        half = torch.randn(rows, columns.size, generator=generator, dtype=dtype) * math.sqrt(0.5)
        return torch.cat([half, -half], 1)
    noise_oi = torch.randn(rows, columns.new_size, generator=generator, dtype=dtype)
    if columns.tiles is not None:
        blocks = noise_oi.view(rows, columns.tiles, columns.size)
        blocks -= blocks.mean(1, keepdim=True)
        return noise_oi
    sums_oI = noise_oi.new_zeros(rows, columns.size)
    sums_oI.index_add_(1, columns.filled, noise_oi * ~columns.is_new)
    return noise_oi - sums_oI.index_select(1, columns.filled) / columns.copies.to(dtype)


def rms(tensor: Tensor) -> float:
    """Root of the mean square."""
    return float(tensor.norm()) / math.sqrt(tensor.numel())
