"""The points of a run's metrics.jsonl that lie on one curve.

A loss on short sequences is another quantity, and so is one while the learning rate still rises. What is left are the
losses at the full length after both warmups; validation losses where there are enough, else training losses.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.growth.planner.fit import LEAST_POINTS
from megatron_slw.train.metrics import Record

SHARE_LEFT_OUT = 0.125
"""Of the tokens: no law holds for the first steps of a training."""
MOST_TRAINING, MOST_VALIDATION = 64, 256
"""Losses beyond so many are averaged; a training loss is that of few tokens."""


class TooShort(ValueError):
    """There is no curve yet; the message says what is missing."""


@dataclass(frozen=True)
class Points:
    """Of one curve, in the order of the training."""

    tokens: tuple[float, ...]
    """Trained, on the clock of this model's size: less what a growth moved it by."""
    losses: tuple[float, ...]
    kind: str
    """validation or training."""
    last_step: int
    last_tokens: float
    """On the same clock as `tokens`."""
    tokens_per_step: float
    flops_per_token: float
    """At the full length; nan where the file has no FLOPs."""
    rate_left: float
    """The last learning rate as a share of the highest."""

    def step(self, tokens: float) -> float:
        """The run's step at which so many tokens are trained, as it goes on at its present batch."""
        return self.last_step + (tokens - self.last_tokens) / self.tokens_per_step


class Reader:
    """Takes records in order; `points` is what they say so far."""

    def __init__(self, full_length: int | None = None) -> None:
        """`full_length` in tokens; None is the longest there is."""
        self._full = full_length
        self._steps, self._evaluations = _columns(6), _columns(2)
        self._shift = 0

    def take(self, record: Record) -> None:
        """The next record; what has no finite loss is left out.

        Raises:
            ConfigError: it is no record.
        """
        try:
            tokens = float(record["tokens"])
            if "val_loss" in record:
                _append(self._evaluations, tokens, _number(record["val_loss"]))
                return
            if "grown_from" in record:  # another curve begins
                self._steps, self._evaluations = _columns(6), _columns(2)
                self._shift = int(record.get("lr_shift_tokens", 0))
            loss, rate, flops = _number(record["loss"]), _number(record["lr"]), _number(record.get("flops"))
            _append(self._steps, int(record["step"]), tokens, int(record["seq_len"]), loss, rate, flops)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"is no metrics record: {error}") from None

    def points(self, left_out: float = SHARE_LEFT_OUT) -> Points:
        """What can be compared.

        Args:
            left_out: share of the tokens at the beginning that no law holds for.

        Raises:
            TooShort: with the reason.
        """
        step, tokens, length, loss, rate, flops = (np.array(column) for column in self._steps)
        if len(step) < 2:
            raise TooShort("no step is trained")
        full = self._full or length.max()
        short = np.flatnonzero(length != full)
        first = int(short[-1]) + 1 if len(short) else 0
        if first >= len(step) - 1:
            raise TooShort(f"length warmup goes on: step {step[-1]:.0f} has {length[-1]:.0f} of {full:.0f} tokens")
        highest = int(np.argmax(rate))
        if highest == len(step) - 1:
            raise TooShort(f"the learning rate still rises at step {step[-1]:.0f}")
        first = max(first, highest)
        own = tokens - self._shift
        begin = max(own[first], left_out * own[-1])
        when, values = (np.array(column) for column in self._evaluations)
        keep = (when - self._shift > begin) & np.isfinite(values)
        kind, pairs = "validation", list(zip((when - self._shift)[keep].tolist(), values[keep].tolist(), strict=True))
        if len(pairs) < LEAST_POINTS:
            kind, keep = "training", (own > begin) & np.isfinite(loss)
            pairs = _averaged(own[keep], loss[keep], min(MOST_TRAINING, int(keep.sum()) // 4))
        elif len(pairs) > MOST_VALIDATION:
            pairs = _averaged((when - self._shift)[keep], values[keep], MOST_VALIDATION)
        if len(pairs) < LEAST_POINTS:
            raise TooShort(
                f"{len(pairs)} losses at full length after step {step[first]:.0f}, where both warmups are over; at "
                f"least {LEAST_POINTS} are needed"
            )
        per_step = float((tokens[-1] - tokens[first]) / (step[-1] - step[first]))
        cost = float((flops[-1] - flops[first]) / (tokens[-1] - tokens[first]))
        times, curve = zip(*pairs, strict=True)
        share = float(rate[-1] / rate[highest])
        return Points(times, curve, kind, int(step[-1]), float(own[-1]), per_step, cost, share)


def _columns(count: int) -> tuple[array[float], ...]:
    """Numbers without an object each: a run may have a million steps."""
    return tuple(array("d") for _ in range(count))


def _append(columns: tuple[array[float], ...], *values: float) -> None:
    for column, value in zip(columns, values, strict=True):
        column.append(value)


def read_points(records: Iterable[Record], full_length: int | None = None) -> Points:
    """The points of a file's records.

    Raises:
        ConfigError: one is no record.
        TooShort: there is no curve in them yet.
    """
    reader = Reader(full_length)
    for record in records:
        reader.take(record)
    return reader.points()


def _averaged(tokens: np.ndarray, losses: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Means over at most `count` stretches, which grow with the tokens."""
    if not count:
        return []
    edges = np.geomspace(tokens[0], tokens[-1], count + 1)[1:-1]
    place = np.searchsorted(edges, tokens, side="right")
    return [
        (float(tokens[place == i].mean()), float(losses[place == i].mean())) for i in range(count) if (place == i).any()
    ]


def _number(value: object) -> float:
    """null is how a file writes what is not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r:.40} is not a number")
    return float(value)
