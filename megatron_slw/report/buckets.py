"""A run of any length as a few hundred intervals: the least, greatest and mean value in each.

One pass, in memory that does not grow with the run. The extremes are kept, so a spike of one step in a million is
still drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from megatron_slw.report.smoothing import Floats

CAPACITY = 512
"""Intervals at most, and half as many at least in a longer run: one for each pixel or two of a chart."""


@dataclass(frozen=True)
class Reduced:
    """What is left of a run: arrays of shape (intervals, columns); nan where an interval has no value."""

    low: Floats
    high: Floats
    mean: Floats
    count: Floats
    """Values that were not nan."""

    def __len__(self) -> int:
        return len(self.low)


class Buckets:
    """Takes rows one by one. Intervals hold 1, 2, 4, ... rows each: when they run out, neighbours are joined."""

    def __init__(self, columns: int, capacity: int = CAPACITY) -> None:
        """`capacity` must be even."""
        if capacity < 2 or capacity % 2:
            raise ValueError(f"the capacity must be even and positive, not {capacity}")
        self.rows = 0
        self._columns = columns
        self._width = 1
        self._full = 0
        self._table = np.zeros((4, capacity, columns))  # low, high, sum, count
        self._begin()

    def add(self, row: Sequence[float]) -> None:
        """Take the next row: a value for each column, nan where there is none."""
        for column, value in enumerate(row):
            if value == value:
                if value < self._low[column]:
                    self._low[column] = value
                if value > self._high[column]:
                    self._high[column] = value
                self._sum[column] += value
                self._count[column] += 1
        self.rows += 1
        self._inside += 1
        if self._inside == self._width:
            self._end()

    def reduced(self) -> Reduced:
        """The intervals so far; the last one may hold fewer rows than the others."""
        table = self._table[:, : self._full]
        if self._inside:
            table = np.concatenate((table, self._open()[:, None]), axis=1)
        low, high, total, count = table
        empty = count == 0
        mean = total / np.maximum(count, 1)
        low, high, mean = (np.where(empty, np.nan, values) for values in (low, high, mean))
        return Reduced(low, high, mean, count)

    def _open(self) -> Floats:
        return np.array([self._low, self._high, self._sum, self._count])

    def _begin(self) -> None:
        self._inside = 0
        self._low = [math.inf] * self._columns
        self._high = [-math.inf] * self._columns
        self._sum = [0.0] * self._columns
        self._count = [0] * self._columns

    def _end(self) -> None:
        self._table[:, self._full] = self._open()
        self._full += 1
        self._begin()
        capacity = self._table.shape[1]
        if self._full == capacity:
            low, high, total, count = self._table
            half = capacity // 2
            self._table[0, :half] = np.minimum(low[::2], low[1::2])
            self._table[1, :half] = np.maximum(high[::2], high[1::2])
            self._table[2, :half] = total[::2] + total[1::2]
            self._table[3, :half] = count[::2] + count[1::2]
            self._full = half
            self._width *= 2
