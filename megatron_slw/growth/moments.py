"""What growth does to gradients, and so to Adam's moments and to the rates that repeat the small model's updates.

In a model grown into equal copies the gradient of every tensor is that of the small model, copied into *every* block
(the off-diagonal zeros of `staged` too), times s. Activations of copies are equal, so s is the ratio of the output's
gradients: 1/k for a coordinate of the residual stream with k copies, 1/n for a unit or head with n copies, 1 for what
the final LayerNorm gives to the head. Hence exp_avg is multiplied by s and exp_avg_sq by s^2; new entries begin at
zero. For k x k blocks of all matrices s = 1/k, for the final LayerNorm 1 (derived and checked in fp64; the code of
arXiv 2203.06211 leaves the off-diagonal moments zero).

Adam does not feel s, so every one of the n copies of an input moves as far as the one did, and their sum n times as
far. `multipliers` undoes that: rate / n and decoupled decay x n on matrices with n copies of their inputs, rate / k
on the final LayerNorm (whose weights were divided by k), eps x s. Then each step of the grown model is the small one's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from megatron_slw.growth.operators import names
from megatron_slw.growth.operators.axis import Axis
from megatron_slw.growth.operators.matrix import copy_matrix
from megatron_slw.growth.operators.multiplier import Multiplier
from megatron_slw.growth.operators.width import Width


def gradient_scale(family: str, width: Width) -> Tensor:
    """s: (rows of the grown tensor,) or a scalar, fp64."""
    module, _, kind = family.rpartition(".")
    k, r = width.residual_copies, width.variance_ratio
    if module == names.QKV:
        sizes = width.head_dim
        c = int(sizes.counts[0])
        parts = width.qkv_rows(math.sqrt(sizes.size / sizes.new_size), 1 / c, 1 / c)
        return parts / width.heads.copies.repeat_interleave(3 * sizes.new_size)
    if module == names.FC:
        return 1.0 / width.ffn.copies.double()
    scale = 1.0 if module == names.FINAL_NORM else 1.0 / k
    if module in names.NORMS and kind == "weight":
        scale /= math.sqrt(r)
    return torch.tensor(scale, dtype=torch.float64)


def grow_moment(family: str, moment: Tensor, width: Width, power: int, gradient: float = 1.0) -> Tensor:
    """exp_avg (`power` 1), exp_avg_sq (2) or SGD's momentum (1) of the grown tensor.

    Args:
        family: see `names`.
        moment: the old model's.
        width: how the dimensions grow.
        power: of s.
        gradient: the family's Multiplier.gradient.
    """
    grown = _copy(family, moment, width)
    factor = ((gradient_scale(family, width) * gradient) ** power).to(grown.dtype)
    if factor.dim() == 0 and float(factor) == 1.0:
        return grown
    return grown.mul_(factor[:, None] if factor.dim() and grown.dim() == 2 else factor)


def multipliers(width: Width) -> dict[str, Multiplier]:
    """What makes an AdamW step of the grown model the small one's; families that need nothing are left out.

    Raises:
        ValueError: the growth is not whole copies of everything, so that no such factors exist.
    """
    if not width.is_uniform:
        raise ValueError("the growth is not whole copies of every dimension")
    found = {}
    for family in names.FAMILIES:
        rows, columns = _copies(family, width)
        s = float(gradient_scale(family, width).flatten()[0])
        entries = rows * columns  # one old entry's copies, each with a gradient s times its
        gradient = 1.0 / (s * math.sqrt(entries))
        final = family.startswith(names.FINAL_NORM)
        n = width.residual_copies if final else columns
        value = Multiplier(lr=1.0 / n, weight_decay=float(columns), eps=s * gradient, gradient=gradient)
        if value != Multiplier():
            found[family] = value
    return found


def _copies(family: str, width: Width) -> tuple[int, int]:
    """Copies of each output and, for the matrices between them, of each input."""
    module, _, kind = family.rpartition(".")
    k, heads, ffn = width.residual_copies, int(width.heads.counts[0]), int(width.ffn.counts[0])
    rows = {names.QKV: heads, names.FC: ffn}.get(module, k)
    if family in (names.WORDS, names.POSITIONS) or kind == "bias" or module in names.NORMS:
        return rows, 1
    return rows, {names.OUT: heads, names.PROJ: ffn}.get(module, k)


def _copy(family: str, moment: Tensor, width: Width) -> Tensor:
    module, _, kind = family.rpartition(".")
    if family == names.WORDS:
        return _copy_table(moment[: width.vocab.size], width.padded_vocab_size, width.residual)
    if family == names.POSITIONS:
        return _copy_table(moment, width.positions.new_size, width.residual)
    inner = {names.QKV: width.qkv, names.OUT: width.context}.get(module, width.ffn)
    rows, columns = (inner, width.residual) if module in names.READERS else (width.residual, inner)
    if kind == "weight" and module not in names.NORMS:
        return copy_matrix(moment, rows, columns)
    grown = moment.index_select(0, rows.filled)
    grown[rows.is_new] = 0.0
    return grown


def _copy_table(moment_VC: Tensor, rows: int, residual: Axis) -> Tensor:
    """Tables: zero in new rows and added columns."""
    count, size = moment_VC.shape
    grown_vc = moment_VC.new_zeros(rows, residual.new_size)
    for copy in range(int(residual.counts[0])):
        grown_vc[:count, copy * size : (copy + 1) * size] = moment_VC
    return grown_vc
