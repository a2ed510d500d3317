"""Which labels every row of a run trains: the token ledger, and what becomes of the tokens a warmup cuts off.

A sample is a window of N labels; label k predicts token k + 1 from the tokens 0 to k. A row of a step with length L
is made of slices of samples, and the mode says of which:

- seqlen_truncate: the labels [0, L) of a sample of its own. What is cut off is never trained.
- seqlen_reshape: the samples one after the other are one stream of labels, cut into rows of L wherever that falls.
- seqlen_replay, seqlen_revisit, seqlen_tailpack begin like truncate, and remember what they cut. Steps of the full
  length then work through that backlog, oldest first, before they draw new samples:
  replay gives the whole sample, the loss masked on the labels it has trained already; revisit gives the whole sample
  and trains the beginning once more; tailpack joins the tails into rows of N labels without recomputing anything.

Every label is trained once in reshape, replay and tailpack. The rows of a run are numbered through; rows of one kind
that follow each other are one segment, and with exact prefix sums over these any row is found by bisection.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from megatron_slw.slw.slices import Cut, OneEach, Packed, Padding, Slices, one_each, packed

MODES = ("seqlen_truncate", "seqlen_reshape", "seqlen_replay", "seqlen_tailpack", "seqlen_revisit")
ENDLESS = 2**62
"""Labels of a stream without an end."""
RETURNING = ("seqlen_replay", "seqlen_tailpack", "seqlen_revisit")


class Segment(NamedTuple):
    """Rows of one kind, and the totals before them."""

    first_row: int
    content: OneEach | Packed | Padding
    labels_before: int
    samples_before: int
    """Samples drawn, fresh ones only."""
    repeated_before: int


class Ledger:
    """The segments of a run, extended run by run; nothing in it changes but by `extend`.

    Args:
        mode: one of MODES.
        full_length: N.
        samples: how many may be drawn; None for no end.
    """

    def __init__(self, mode: str, full_length: int, samples: int | None) -> None:
        self.mode, self.full_length, self.limit = mode, full_length, samples
        self.segments: list[Segment] = []
        self._first_rows: list[int] = []
        self._labels: list[int] = []
        self.rows = self.labels = self.samples = self.repeated = 0
        self._backlog: deque[Cut] = deque()
        self._stream: Packed | None = None  # a backlog that is being packed, from where the next row goes on

    def extend(self, rows: int, length: int) -> None:
        """Append `rows` rows of steps with this length."""
        if self.mode == "seqlen_reshape":
            rows -= self._take_stream(rows, length)
        else:
            if length == self.full_length:
                rows -= self._return(rows)
            rows -= self._draw(rows, length)
        if rows:
            self._append(Padding(), rows, labels=0, samples=0, repeated=0)

    def rows_left(self, length: int) -> int:
        """Rows of this length that a limited run still needs; 0 when it is done.

        Below the full length that is up to the last sample, and what comes back follows at the full length.
        """
        assert self.limit is not None, "only a limited run ends by itself"
        if self.mode == "seqlen_reshape":
            return -(-(self.limit * self.full_length - self.labels) // length)
        fresh = self.limit - self.samples
        return fresh + self._returning_rows() if length == self.full_length else fresh

    @property
    def drawn_out(self) -> bool:
        """All samples are drawn, and there are labels that have to come back at the full length."""
        return self.samples == self.limit and self._returning_rows() > 0

    def labels_before(self, row: int) -> int:
        """Labels trained by the rows before this one."""
        segment = self._segment(row)
        return segment.labels_before + self._labels_of(segment, row - segment.first_row)

    def samples_before(self, row: int) -> int:
        """Samples drawn by the rows before this one."""
        segment = self._segment(row)
        content, count = segment.content, row - segment.first_row
        if isinstance(content, OneEach) and content.fresh:
            return segment.samples_before + count
        if isinstance(content, Packed) and content.fresh:
            return -(-(content.offset + self._labels_of(segment, count)) // self.full_length)
        return segment.samples_before

    def untrained_before(self, row: int) -> int:
        """Labels of the samples drawn before this row that were not trained before it: discarded, or to come back."""
        segment = self._segment(row)
        repeated = segment.repeated_before
        if isinstance(segment.content, OneEach):
            repeated += segment.content.repeated * (row - segment.first_row)
        return self.samples_before(row) * self.full_length - (self.labels_before(row) - repeated)

    def rows_to_labels(self, labels: int) -> int:
        """The smallest number of rows that train at least so many labels."""
        if labels <= 0:
            return 0
        segment = self.segments[bisect_right(self._labels, labels - 1) - 1]
        content, missing = segment.content, labels - segment.labels_before
        assert not isinstance(content, Padding), "padding follows the last label"
        each = content.width if isinstance(content, Packed) else content.stop - content.first_trained
        return segment.first_row + -(-missing // each)

    def slices(self, first_row: int, count: int) -> Slices:
        """What the rows [first_row, first_row + count) are made of; padding rows have no slice."""
        parts: list[Slices] = []
        index = bisect_right(self._first_rows, first_row) - 1
        row, end = first_row, first_row + count
        while row < end:
            segment = self.segments[index]
            index += 1
            stop = min(end, self.segments[index].first_row if index < len(self.segments) else self.rows)
            within, shift = row - segment.first_row, row - first_row
            if isinstance(segment.content, OneEach):
                parts.append(one_each(segment.content, within, stop - row, shift))
            elif isinstance(segment.content, Packed):
                parts.append(packed(segment.content, self.full_length, within, stop - row, shift))
            row = stop
        if not parts:
            return Slices(*(np.empty(0, np.int64) for _ in Slices._fields))
        return Slices(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _segment(self, row: int) -> Segment:
        if not 0 <= row <= self.rows:
            raise IndexError(f"row {row} is not in the ledger: it has rows 0 to {self.rows}")
        return self.segments[bisect_right(self._first_rows, row) - 1]

    def _labels_of(self, segment: Segment, rows: int) -> int:
        """Labels of the first rows of a segment."""
        content = segment.content
        if isinstance(content, OneEach):
            return rows * (content.stop - content.first_trained)
        if isinstance(content, Packed):
            return min(rows * content.width, content.total - content.offset)
        return 0

    def _tails(self) -> Packed:
        """The backlog as a stream."""
        total = sum(cut.number * (self.full_length - cut.length) for cut in self._backlog)
        return Packed(tuple(self._backlog), total, 0, self.full_length, fresh=False)

    def _append(self, content: OneEach | Packed | Padding, rows: int, labels: int, samples: int, repeated: int) -> None:
        self.segments.append(Segment(self.rows, content, self.labels, self.samples, self.repeated))
        self._first_rows.append(self.rows)
        self._labels.append(self.labels)
        self.rows += rows
        self.labels += labels
        self.samples += samples
        self.repeated += repeated

    def _draw(self, rows: int, length: int) -> int:
        """Fresh samples, a row each, cut to the length; returns how many there were."""
        if self.limit is not None:
            rows = min(rows, self.limit - self.samples)
        if not rows:
            return 0
        if length < self.full_length and self.mode in RETURNING:
            self._backlog.append(Cut(self.samples, rows, length))
        self._append(OneEach(self.samples, length, 0, 0, fresh=True), rows, rows * length, rows, 0)
        return rows

    def _return(self, rows: int) -> int:
        """Rows of the full length from the backlog; returns how many there were."""
        return self._return_tails(rows) if self.mode == "seqlen_tailpack" else self._return_samples(rows)

    def _return_samples(self, rows: int) -> int:
        full, left = self.full_length, rows
        while left and self._backlog:
            cut = self._backlog.popleft()
            taken = min(left, cut.number)
            if taken < cut.number:
                self._backlog.appendleft(Cut(cut.first_sample + taken, cut.number - taken, cut.length))
            trained, repeated = (cut.length, 0) if self.mode == "seqlen_replay" else (0, cut.length)
            content = OneEach(cut.first_sample, full, trained, repeated, fresh=False)
            self._append(content, taken, taken * (full - trained), 0, taken * repeated)
            left -= taken
        return rows - left

    def _return_tails(self, rows: int) -> int:
        full, left = self.full_length, rows
        while left and (self._stream is not None or self._backlog):
            if self._stream is None:
                self._stream = self._tails()
                self._backlog.clear()
            stream = self._stream
            labels = stream.total - stream.offset
            taken = min(left, -(-labels // full))
            self._append(stream, taken, min(labels, taken * full), 0, 0)
            done = taken * full >= labels
            self._stream = None if done else replace(stream, offset=stream.offset + taken * full)
            left -= taken
        return rows - left

    def _take_stream(self, rows: int, length: int) -> int:
        """Rows of the one stream of all samples; returns how many there were."""
        end = ENDLESS // self.full_length if self.limit is None else self.limit
        total = end * self.full_length
        left = total - self.labels
        rows = min(rows, -(-left // length))
        if not rows:
            return 0
        labels = min(rows * length, left)
        drawn = -(-(self.labels + labels) // self.full_length)
        stream = Packed((Cut(0, end, 0),), total, self.labels, length, fresh=True)
        self._append(stream, rows, labels, drawn - self.samples, 0)
        return rows

    def _returning_rows(self) -> int:
        if self.mode != "seqlen_tailpack":
            return sum(cut.number for cut in self._backlog)
        streams = [] if self._stream is None else [self._stream]
        if self._backlog:
            streams.append(self._tails())
        return sum(-(-(stream.total - stream.offset) // self.full_length) for stream in streams)
