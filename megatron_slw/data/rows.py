"""From samples, or slices of samples, to the arrays of a block.

Two ways give the same arrays: whole beginnings of samples are copied row by row, straight from the mapped file; rows
of several slices are put together token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_slw.data.blend import BlendedWindows, parts_of
from megatron_slw.data.windows import Windows
from megatron_slw.slw.slices import Slices


@dataclass(frozen=True)
class Blocks:
    """The rows one rank trains in one step; B rows of T labels, in the dataset's own integer dtype."""

    tokens_BT: np.ndarray
    labels_BT: np.ndarray
    """The tokens, one position on in their sample."""
    loss_mask_BT: np.ndarray | None = None
    """float32; None counts every label. All ranks have one or none has."""
    starts_BT: np.ndarray | None = None
    """bool, True where a token is the first of a document, or of a slice; None where documents are not tracked.
    Whether a row begins in the middle of a document does not matter: nothing of the row is before it."""


def whole_rows(
    windows: Windows | BlendedWindows, corpus: np.ndarray, window: np.ndarray, length: int, track_documents: bool
) -> Blocks:
    """The first `length` labels of windows, a row each, and the tokens before them.

    Args:
        windows: of one corpus or several.
        corpus: which of them each row is from, shape (rows,).
        window: its number there, shape (rows,).
        length: in [1, N].
        track_documents: fill `Blocks.starts_BT`.
    """
    if isinstance(windows, Windows):
        starts_BT = windows.starts(window, length) if track_documents else None
        rows_BT = windows.gather(window, length)
    else:
        rows_BT = np.empty((len(window), length + 1), windows.dtype)
        starts_BT = np.zeros((len(window), length), bool) if track_documents else None
        for number, part in enumerate(windows.parts):
            rows = np.flatnonzero(corpus == number)
            rows_BT[rows] = part.gather(window[rows], length)
            if starts_BT is not None:
                starts_BT[rows] = part.starts(window[rows], length)
    return Blocks(rows_BT[:, :-1], rows_BT[:, 1:], starts_BT=starts_BT)


def sliced_rows(
    windows: Windows | BlendedWindows,
    corpus: np.ndarray,
    window: np.ndarray,
    slices: Slices,
    shape: tuple[int, int],
    track_documents: bool,
) -> Blocks:
    """Rows put together from slices; what no slice fills is token 0 under a zero mask.

    Args:
        windows: of one corpus or several.
        corpus: which of them each slice is from, shape (slices,).
        window: its number there, shape (slices,).
        slices: of one block.
        shape: (rows, length).
        track_documents: fill `Blocks.starts_BT`, the first token of each slice included.
    """
    lengths = slices.stop - slices.start
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.repeat(slices.row * shape[1] + slices.column, lengths) + within
    label = np.repeat(slices.start, lengths) + within
    tokens, labels = (np.zeros(shape[0] * shape[1], parts_of(windows)[0].tokens.dtype) for _ in range(2))
    if isinstance(windows, BlendedWindows):
        tokens, labels = tokens.astype(windows.dtype), labels.astype(windows.dtype)
    mask, starts = np.zeros(tokens.shape, np.float32), np.zeros(tokens.shape, bool)
    mask[place] = label >= np.repeat(slices.first_trained, lengths)
    for number, part in enumerate(parts_of(windows)):
        mine = np.flatnonzero(corpus == number)
        here = np.flatnonzero(np.repeat(corpus == number, lengths))
        source = np.repeat(window[mine] * part.length, lengths[mine]) + label[here]
        tokens[place[here]] = part.tokens[source]
        labels[place[here]] = part.tokens[source + 1]
        if track_documents:
            begins_BT = part.starts(window[mine], part.length)
            starts[place[here]] = begins_BT[np.repeat(np.arange(len(mine)), lengths[mine]), label[here]]
    starts[slices.row * shape[1] + slices.column] = True
    starts_BT = starts.reshape(shape) if track_documents else None
    return Blocks(tokens.reshape(shape), labels.reshape(shape), mask.reshape(shape), starts_BT)
