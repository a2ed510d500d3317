"""What each tensor of a wider model is made of: one pure function for each kind of tensor.

Legend: C residual stream, H inner units (heads x head size, or feed-forward), V tokens, T positions; a lower case
letter is the grown dimension. `width` holds how each of them grows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_slw.growth.operators import names
from megatron_slw.growth.operators.axis import Axis, tiled
from megatron_slw.growth.operators.matrix import add_paired_noise, expand_matrix, rms
from megatron_slw.growth.operators.width import Width

NEW_INPUT_DB = 10.0  # new inputs of old outputs, in decibels below them: they are zero at first, but must differ


def grow_weight(family: str, tensor: Tensor, width: Width, generator: torch.Generator) -> Tensor:
    """The tensor of the wider model, in the same dtype.

    Args:
        family: see `names`.
        tensor: the old model's.
        width: how its dimensions grow.
        generator: of the noise and of new inputs; seeded by the tensor's name.
    """
    module, _, kind = family.rpartition(".")
    if family == names.WORDS:
        return grow_words(tensor, width)
    if family == names.POSITIONS:
        return grow_positions(tensor, width)
    if module in names.NORMS:
        return grow_norm(tensor, width, is_gain=kind == "weight", is_final=module == names.FINAL_NORM)
    inner = {names.QKV: width.qkv, names.OUT: width.context}.get(module, width.ffn)
    if module in names.WRITERS:
        return grow_writer(tensor, width, inner, generator) if kind == "weight" else _residual(tensor, width)
    grown = grow_reader(tensor, width, inner, generator) if kind == "weight" else _copied(tensor, inner)
    return _scale_queries(grown, width) if module == names.QKV else grown


def grow_reader(weight_HC: Tensor, width: Width, inner: Axis, generator: torch.Generator) -> Tensor:
    """Matrices that read the residual stream: copies share the weights of their source (see `matrix`).

    Added coordinates are zero when they are read, so their weights are free: small and random, since equal ones would
    stay equal. Added units read at random.
    """
    grown_hc = expand_matrix(weight_HC, inner, width.residual, width.share)
    if width.snr_db is not None:
        add_paired_noise(grown_hc, weight_HC, width.residual, width.snr_db, generator)
    size = rms(weight_HC)
    if width.residual.has_new:
        extra = int(width.residual.is_new.sum())
        values = torch.randn(inner.new_size, extra, generator=generator, dtype=weight_HC.dtype)
        grown_hc[:, width.residual.is_new] = values * (size * 10 ** (-NEW_INPUT_DB / 20))
    if inner.has_new:
        rows = int(inner.is_new.sum())
        values = torch.randn(rows, width.residual.new_size, generator=generator, dtype=weight_HC.dtype)
        grown_hc[inner.is_new] = values * (size / width.residual_copies**0.5)
    return grown_hc


def grow_writer(weight_CH: Tensor, width: Width, inner: Axis, generator: torch.Generator) -> Tensor:
    """Matrices that write to the residual stream: copies of a coordinate get the same sum, added ones the mean of all.

    Added units write nothing yet.
    """
    grown_ch = expand_matrix(weight_CH, width.residual, inner, width.share)
    if width.residual.has_new:
        mean_1H = weight_CH.mean(0, keepdim=True)
        grown_ch[width.residual.is_new] = expand_matrix(mean_1H, tiled(1, 1), inner, width.share)
    if width.snr_db is not None:
        add_paired_noise(grown_ch, weight_CH, inner, width.snr_db, generator)
    return grown_ch


def grow_norm(vector_C: Tensor, width: Width, is_gain: bool, is_final: bool) -> Tensor:
    """Gains are multiplied by sqrt(r); the final LayerNorm is divided by k; added biases are zero (see `width`)."""
    grown_c = _copied(vector_C, width.residual)
    if is_gain:
        if width.residual.has_new:
            grown_c[width.residual.is_new] = vector_C.mean()
        grown_c *= width.variance_ratio**0.5
    return grown_c / width.residual_copies if is_final and width.residual_copies > 1 else grown_c


def grow_words(table_VC: Tensor, width: Width) -> Tensor:
    """The token table. A new token begins as the mean of the old ones, so that its logit is of their size; padding
    rows stay zero. The old tokens' logits do not change, but the loss does: there are more tokens to choose from."""
    before, after = width.vocab.size, width.vocab.new_size
    grown_vc = table_VC.new_zeros(width.padded_vocab_size, width.residual.new_size)
    _write_columns(table_VC[:before], width.residual, grown_vc[:before])
    if width.vocab.has_new:
        _write_columns(table_VC[:before].mean(0, keepdim=True), width.residual, grown_vc[before:after])
    return grown_vc


def grow_positions(table_TC: Tensor, width: Width) -> Tensor:
    """The position table; new positions repeat the old ones from the first on (as Longformer's, arXiv 2004.05150)."""
    count = width.positions.new_size
    rows_tC = table_TC if count == len(table_TC) else table_TC[torch.arange(count) % len(table_TC)]
    grown_tc = table_TC.new_empty(count, width.residual.new_size)
    _write_columns(rows_tC, width.residual, grown_tc)
    return grown_tc


def _write_columns(rows_VC: Tensor, residual: Axis, out_Vc: Tensor) -> None:
    """Copies of the columns, and their mean in the added ones."""
    size, k = residual.size, int(residual.counts[0])
    for copy in range(k):
        out_Vc[:, copy * size : (copy + 1) * size] = rows_VC
    if residual.has_new:
        out_Vc[:, k * size :] = rows_VC.mean(1, keepdim=True)


def _residual(vector_C: Tensor, width: Width) -> Tensor:
    """What is added to the residual stream: copies, and the mean in the added coordinates."""
    grown_c = _copied(vector_C, width.residual)
    if width.residual.has_new:
        grown_c[width.residual.is_new] = vector_C.mean()
    return grown_c


def _copied(vector: Tensor, axis: Axis) -> Tensor:
    """Copies, and zero in new entries."""
    grown = vector.index_select(0, axis.filled)
    grown[axis.is_new] = 0.0
    return grown


def _scale_queries(grown: Tensor, width: Width) -> Tensor:
    """Keep the scores of old heads whose size grew: scale their queries, and let their new entries' queries be zero."""
    if width.head_dim.new_size == width.head_dim.size:
        return grown
    by_part = grown.view(width.heads.new_size, 3, width.head_dim.new_size, *grown.shape[1:])
    old_heads = ~width.heads.is_new
    queries = by_part[old_heads, 0] * width.query_gain
    queries[:, width.head_dim.is_new] = 0.0
    by_part[old_heads, 0] = queries
    return grown
