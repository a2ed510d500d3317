"""What is scored: rows of token ids of which some labels count, and how they are batched by length.

A stream longer than the model's full length is read in windows. With a stride below the length, a window begins
length - stride tokens before the labels it scores, which then have at least that much context; the work grows by
length / stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PAD_TO = 8
"""Lengths are rounded up to a multiple of it: fewer shapes, and tensor cores like them."""


class Window(NamedTuple):
    """Inputs [first, stop) of a stream; labels [scored, stop) count here, others elsewhere."""

    first: int
    scored: int
    stop: int


def cover(labels: int, length: int, stride: int | None = None) -> list[Window]:
    """Windows of `length` labels over a stream of `labels`; each label is scored in exactly one.

    The last window is moved back to the stream's end instead of being cut, so that all windows have one shape
    and its labels have more context, not less.

    Args:
        labels: of the stream.
        length: of a window, at least 1.
        stride: labels that a window scores, the first one aside, which scores all of its own; None is `length`.

    Raises:
        ValueError: the length is below 1, or the stride not in [1, length].
    """
    stride = length if stride is None else stride
    if length < 1 or not 1 <= stride <= length:
        raise ValueError(f"stride {stride} must be in [1, length], and length {length} at least 1")
    windows: list[Window] = []
    done = 0
    while done < labels:
        stop = min(labels, max(done - (length - stride), 0) + length)
        windows.append(Window(max(0, stop - length), done, stop))
        done = stop
    return windows


@dataclass(frozen=True, eq=False)
class Row:
    """Tokens ids[:-1] go in, ids[1:] are their labels."""

    ids: np.ndarray
    """Integers, shape (labels + 1,)."""
    scored: int
    """Labels from this one on count."""
    documents: np.ndarray | None = None
    """Numbers of the documents that the inputs lie in, never falling, shape (labels,); None for one document."""

    @property
    def labels(self) -> int:
        """Length of the inputs."""
        return len(self.ids) - 1

    @property
    def counted(self) -> int:
        """Labels that count."""
        return self.labels - self.scored


def stream_rows(
    ids: np.ndarray, length: int, stride: int | None = None, starts: np.ndarray | None = None
) -> list[Row]:
    """The windows of a stream as rows; ids[0] is context alone.

    Args:
        ids: shape (labels + 1,); an empty or one-token stream has no rows.
        length: of the model, in tokens.
        stride: see `cover`.
        starts: which tokens are the first of a document, bool of the shape of `ids`.
    """
    rows = []
    for window in cover(max(len(ids) - 1, 0), length, stride):
        documents = None if starts is None else starts[window.first : window.stop].cumsum()
        rows.append(Row(ids[window.first : window.stop + 1], window.scored - window.first, documents))
    return rows


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows of about one length, filled up at their ends."""

    rows: tuple[int, ...]
    """Which of all rows."""
    length: int
    """Tokens of each."""

    @property
    def tokens(self) -> int:
        """What goes through the model."""
        return len(self.rows) * self.length


def batches_by_length(rows: Sequence[Row], tokens: int, longest: int, multiple: int = 1) -> list[Batch]:
    """Put every row in one batch of at most `tokens` tokens (or one row), the longest first.

    Rows are filled up to a multiple of PAD_TO and of `multiple`, but not beyond `longest`.
    """
    unit = int(np.lcm(PAD_TO, multiple))
    lengths = np.array([min(-(-row.labels // unit) * unit, longest) for row in rows], np.int64)
    found: list[Batch] = []
    order = np.argsort(-lengths, kind="stable").tolist()
    while order:
        length = int(lengths[order[0]])
        count = max(1, tokens // length)
        found.append(Batch(tuple(order[:count]), length))
        order = order[count:]
    return found


def padded(rows: Sequence[Row], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The rows as arrays of shape (rows, length): inputs, labels, whether a label counts, document numbers.

    What is filled up comes after the row's own tokens, which a causal model does not look at.
    """
    shape = (len(rows), length)
    inputs, labels, documents = (np.zeros(shape, np.int64) for _ in range(3))
    counts = np.zeros(shape, bool)
    for place, row in enumerate(rows):
        inputs[place, : row.labels] = row.ids[:-1]
        labels[place, : row.labels] = row.ids[1:]
        counts[place, row.scored : row.labels] = True
        if row.documents is not None:
            documents[place, : row.labels] = row.documents
            documents[place, row.labels :] = row.documents[-1]
    return inputs, labels, counts, documents
