"""Long rows into shorter ones without losing a token: the pieces of a row become rows of their own.

Composer's function of this purpose flattens the batch, so that a row holds the end of one sequence and the beginning
of the next, and drops what is left over at the end. Here no row crosses into another, and nothing is dropped but
rows that are padding from end to end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_slw.slw.batch_tensors import Name, is_mask, is_tensor, sequence_axes, window


def rechunk(values: dict[Name, Any], length: int, pad_token_id: int, label_pad_token_id: int) -> dict[Name, Any]:
    """Rows of T positions as ceil(T / length) rows each, which follow each other; as they are if T <= length.

    Every value is moved and none recomputed: given position ids go on counting. A piece of a mask (B, T, T) is the
    block on its diagonal, since pieces do not see each other. The last piece of a row is filled up: labels (a name with
    "label" or "target", the second of a pair) with `label_pad_token_id`, token ids (a name with "input_ids", the first
    of a pair) with `pad_token_id`, everything else with 0. Rows that `attention_mask` (B, T) masks throughout are
    left out, since they train nothing and a softmax over no key is not a number.

    Of labels (B, T) that stand beside their inputs each is there once. A model that shifts the labels itself, as
    Hugging Face's do, predicts no first token, now of every piece.

    Raises:
        ValueError: the tensors differ in rows or positions, there is one value for a whole row, or there is nothing
            that would mark the padding.
    """
    axes = {name: sequence_axes(name, value) for name, value in values.items()}
    tensors = {name: value for name, value in values.items() if axes[name]}
    full = _one({tensors[name].shape[axis] for name in tensors for axis in axes[name]}, "positions")
    if full <= length:
        return values
    _one({tensor.shape[0] for tensor in tensors.values()}, "rows")
    _refuse_row_values(values)
    pads = {name: 0 for name in tensors}
    if full % length:
        pads = _padding(tensors, pad_token_id, label_pad_token_id, length, full)
    pieces = {name: _pieces(tensor, axes[name], length, full, pads[name]) for name, tensor in tensors.items()}
    return values | _without_empty_rows(pieces)


def _one(sizes: set[int], what: str) -> int:
    if len(sizes) > 1:
        raise ValueError(f"tensors of {' and '.join(map(str, sorted(sizes)))} {what} cannot be re-chunked together")
    return sizes.pop()


def _refuse_row_values(values: dict[Name, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, tuple | list) or (is_tensor(value) and value.ndim == 1):
            raise ValueError(
                f"batch[{name!r}] has one value a row, and a row becomes several: take it out, or use truncate=True"
            )


def _padding(
    tensors: dict[Name, Any], pad_token_id: int, label_pad_token_id: int, length: int, full: int
) -> dict[Name, int]:
    """What fills up each tensor."""
    names = [name for name in tensors if isinstance(name, str)]
    labels: list[Name] = [name for name in names if "label" in name or "target" in name]
    tokens: list[Name] = [name for name in names if "input_ids" in name]
    if set(tensors) == {0, 1}:
        tokens, labels = [0], [1]
    if not labels and not any("mask" in name for name in names):
        raise ValueError(
            f"seq_len {length} does not divide the {full} positions, and nothing would mark the padding: add labels or "
            f"an attention_mask, name the tensors in a dict, or use a divisor of {full}"
        )
    for name in labels:
        if "int" not in str(tensors[name].dtype) or "uint" in str(tensors[name].dtype):
            raise ValueError(f"batch[{name!r}] of {tensors[name].dtype} cannot hold the label {label_pad_token_id}")
    for name, tensor in tensors.items():
        if is_mask(name, tensor) and "float" in str(tensor.dtype):
            raise ValueError(f"batch[{name!r}] is added to the scores, so 0 would not mask its padding: use booleans")
    return dict.fromkeys(tensors, 0) | dict.fromkeys(tokens, pad_token_id) | dict.fromkeys(labels, label_pad_token_id)


def _pieces(tensor: Any, axes: tuple[int, ...], length: int, full: int, pad: int) -> Any:
    rows, count = tensor.shape[0], -(-full // length)
    rest = [length if axis in axes else size for axis, size in enumerate(tensor.shape)][1:]
    shape = (rows, count, *rest)
    new_full = getattr(tensor, "new_full", None)  # torch's: on the same device
    pieces: Any = new_full(shape, pad) if new_full else np.full(shape, pad, tensor.dtype)
    for number in range(count):
        start, stop = number * length, min((number + 1) * length, full)
        into = window(tensor.ndim, axes, 0, stop - start)
        pieces[(slice(None), number, *into[1:])] = tensor[window(tensor.ndim, axes, start, stop)]
    return pieces.reshape(rows * count, *rest)


def _without_empty_rows(pieces: dict[Name, Any]) -> dict[Name, Any]:
    mask = pieces.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return pieces
    valid = (mask != 0).any(1)
    return {name: piece[valid] for name, piece in pieces.items()} if valid.any() and not valid.all() else pieces
