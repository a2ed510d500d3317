"""What rows of one kind are made of: slices of samples, as pure arithmetic on row numbers.

A sample is a window of N labels; label k predicts token k + 1 from the tokens 0 to k.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Cut(NamedTuple):
    """Samples [first_sample, first_sample + number) that were trained up to label `length`."""

    first_sample: int
    number: int
    length: int


class Slices(NamedTuple):
    """Parts of samples, and where in a block of rows they lie; int64 arrays of one length, in reading order."""

    row: np.ndarray
    column: np.ndarray
    sample: np.ndarray
    start: np.ndarray
    """The first label of the sample that is in the row, and also its first input token."""
    stop: np.ndarray
    """After the last."""
    first_trained: np.ndarray
    """Labels [start, first_trained) are only context: their loss is masked."""


@dataclass(frozen=True)
class OneEach:
    """Rows of one sample each, consecutive: labels [0, stop), of which [first_trained, stop) count."""

    first_sample: int
    stop: int
    first_trained: int
    repeated: int
    """Of the labels that count, those that were trained before."""
    fresh: bool
    """The samples are drawn here for the first time."""


@dataclass(frozen=True)
class Packed:
    """Rows of `width` labels cut from a stream: the labels [length, N) of the samples of each of `cuts` in turn."""

    cuts: tuple[Cut, ...]
    total: int
    """Labels of the whole stream."""
    offset: int
    """Labels of the stream before the first row."""
    width: int
    fresh: bool


@dataclass(frozen=True)
class Padding:
    """Rows without labels, at the end of a run that has used up its samples."""


def one_each(content: OneEach, first: int, count: int, shift: int) -> Slices:
    """The rows [first, first + count) of `content`, numbered from `shift` on."""
    number = np.arange(count)
    zero = np.zeros(count, np.int64)
    sample = content.first_sample + first + number
    return Slices(shift + number, zero, sample, zero, zero + content.stop, zero + content.first_trained)


def packed(content: Packed, full: int, first: int, count: int, shift: int) -> Slices:
    """The same of a stream of samples with N = `full` labels: cut where a row, a sample or a range of samples ends."""
    begin = content.offset + first * content.width
    end = min(begin + count * content.width, content.total)
    tail = np.array([full - cut.length for cut in content.cuts], np.int64)
    ends = np.cumsum(tail * np.array([cut.number for cut in content.cuts], np.int64))
    starts = ends - tail * np.array([cut.number for cut in content.cuts], np.int64)
    bounds = [np.arange(begin, end, content.width)]
    for index in range(int(np.searchsorted(ends, begin, "right")), int(np.searchsorted(starts, end, "left"))):
        low, high = max(begin, int(starts[index])), min(end, int(ends[index]))
        each = int(tail[index])
        bounds.append(np.arange(low - (low - int(starts[index])) % each, high, each))
    where = np.unique(np.maximum(np.concatenate(bounds), begin))
    piece = np.searchsorted(ends, where, "right")
    skipped, within = np.divmod(where - starts[piece], tail[piece])
    start = full - tail[piece] + within
    row, column = np.divmod(where - begin, content.width)
    sample = np.array([cut.first_sample for cut in content.cuts], np.int64)[piece] + skipped
    return Slices(row + shift, column, sample, start, start + np.diff(where, append=end), start)
