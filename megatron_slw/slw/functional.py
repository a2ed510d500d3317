"""Sequences of a batch at another length, for training loops that are not ours.

B rows of T positions come in, rows of L = `seq_len` positions go out. Nothing here decides L: see `warmup`.
"""

from __future__ import annotations

import operator
from typing import Any

from megatron_slw.slw.batch_tensors import Name, members, rebuilt, sequence_axes, window
from megatron_slw.slw.rechunk import rechunk


def set_batch_sequence_length(
    batch: Any,
    seq_len: int,
    truncate: bool = True,
    preserve_end_of_sequence: bool = False,
    *,
    pad_token_id: int = 0,
    label_pad_token_id: int = -100,
) -> Any:
    """`batch` with sequences of `seq_len` positions; as it is where they are not longer.

    The batch itself is left as it is. A mapping gives a new dict, a tuple or list one of its kind. Tensors that need
    no change are the same objects in both; those that do are contiguous copies. Tensors of one dimension (the classes
    of a classification) and members that are no tensors stay.

    truncate=True keeps the first L positions of every tensor (B, T, ...), and of both sequence dimensions of masks
    (B, T, T) and (B, 1, T, T). With `preserve_end_of_sequence` a row keeps its positions 0 to L - 2 and its last
    valid one, which stands in the last slot of every tensor alike, so that tokens, labels, positions and masks stay
    pairs. Valid is what `attention_mask` (B, T) does not mask; without one the last position is. A row that ends
    within the first L positions is cut like any other.

    truncate=False loses nothing: every row becomes ceil(T / L) rows of its own consecutive pieces, the last of them
    padded. See `rechunk`, also for what is padded with what. No piece lacks an end, so `preserve_end_of_sequence`
    has no effect.

    Args:
        batch: a mapping, or a tuple or list, of tensors (torch, numpy); of a pair the second are the labels.
        pad_token_id: fills up token ids (truncate=False).
        label_pad_token_id: fills up labels; a loss must ignore it.

    Raises:
        ValueError: `seq_len` is no whole number above 0, the batch has no sequences, or its tensors do not fit each
            other.
    """
    length = _length(seq_len)
    values = members(batch)
    if not truncate:
        return rebuilt(batch, rechunk(values, length, pad_token_id, label_pad_token_id))
    if preserve_end_of_sequence:
        return rebuilt(batch, _with_ends(values, length))
    return rebuilt(batch, {name: _cut(name, value, length) for name, value in values.items()})


def _length(seq_len: int) -> int:
    try:
        length = operator.index(seq_len)
    except TypeError:
        length = 0
    if isinstance(seq_len, bool) or length < 1:
        raise ValueError(f"seq_len must be a whole number above 0, but is {seq_len!r:.40}")
    return length


def _cut(name: Name, value: Any, length: int) -> Any:
    axes = sequence_axes(name, value)
    if all(value.shape[axis] <= length for axis in axes):
        return value
    cut = value[window(value.ndim, axes, 0, length)]
    # A view would hold the whole batch in memory, and .view() of the user's loss fails on it.
    return cut.contiguous() if hasattr(cut, "contiguous") else cut.copy()


def _with_ends(values: dict[Name, Any], length: int) -> dict[Name, Any]:
    """The positions 0 to length - 2 and the last valid one of every row, in every tensor."""
    mask = values.get("attention_mask")
    if mask is not None and getattr(mask, "ndim", 0) != 2:
        raise ValueError("preserve_end_of_sequence reads the rows' ends from attention_mask, which must be (rows, T)")
    sizes = {value.shape[axis] for name, value in values.items() for axis in sequence_axes(name, value)}
    longer = {size for size in sizes if size > length}
    if not longer:
        return values
    if len(longer) > 1:
        raise ValueError(f"sequences of {sorted(longer)} positions in one batch have no common end to preserve")
    (full,) = longer
    if mask is None or mask.shape[1] != full:
        rows = {value.shape[0] for name, value in values.items() if sequence_axes(name, value)}
        last: Any = [full - 1] * max(rows)
    else:
        # The running count of valid positions reaches its maximum first at the last of them.
        last = (mask != 0).cumsum(1).argmax(1).clip(length - 1)
    return {name: _ended(name, value, length, last) for name, value in values.items()}


def _ended(name: Name, value: Any, length: int, last: Any) -> Any:
    for axis in sequence_axes(name, value):
        if value.shape[axis] <= length:
            continue
        if value.shape[0] != len(last):
            raise ValueError(f"batch[{name!r}] has {value.shape[0]} rows and others have {len(last)}")
        before = (slice(None),) * (axis - 1)
        cut = value[window(value.ndim, (axis,), 0, length)]
        cut = cut.clone().contiguous() if hasattr(cut, "clone") else cut.copy()
        cut[(slice(None), *before, length - 1)] = value[(list(range(len(last))), *before, last)]
        value = cut
    return value
