"""Axes: where a value lies on one, where its ticks are, and how they read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

LOG_FROM = 50.0
"""An axis of positive values whose greatest is this many times the least is logarithmic."""
_UNITS = {
    "step": ((0.0, 1.0, "optimizer steps"),),
    "tokens": (
        (1e12, 1e12, "trillion tokens"),
        (1e9, 1e9, "billion tokens"),
        (1e6, 1e6, "million tokens"),
        (1e4, 1e3, "thousand tokens"),
        (0.0, 1.0, "tokens"),
    ),
    "time": (
        (2 * 86400.0, 86400.0, "days"),
        (2 * 3600.0, 3600.0, "hours"),
        (120.0, 60.0, "minutes"),
        (0.0, 1.0, "seconds"),
    ),
}
"""Of each clock: from which end on, the size, the text."""
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis from `low` to `high`, which differ."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 at `low`, 1 at `high`, beyond them outside."""
        if not self.log:
            return (value - self.low) / (self.high - self.low)
        if value <= 0:
            return -math.inf
        return math.log(value / self.low) / math.log(self.high / self.low)

    def ticks(self, most: int = 6) -> list[tuple[float, str]]:
        """At most about `most` round values within the axis, with their text."""
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def value_scale(values: Iterable[float]) -> Scale:
    """A scale that holds every finite value of `values` with a little room, logarithmic where they span much."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if low > 0 and high / low >= LOG_FROM:
        room = (high / low) ** 0.04
        return Scale(low / room, high * room, log=True)
    room = max(0.06 * (high - low), 0.01 * abs(high)) or 1.0
    return Scale(low - room if low < 0 or low > room else 0.0, high + room)


def clock_scale(end: float) -> Scale:
    """From 0 to the end of the longest run."""
    return Scale(0.0, end if end > 0 else 1.0)


@dataclass(frozen=True)
class Unit:
    """What the numbers of an axis are multiples of."""

    size: float
    text: str
    """The axis's title: million tokens."""


def clock_unit(clock: str, end: float) -> Unit:
    """The unit in which `end` of a clock is a number of few digits before the point."""
    if clock == "flops":
        power = 3 * int(math.log10(end) // 3) if end >= 1 else 0
        return Unit(10.0**power, f"10{str(power).translate(_SUPERSCRIPT)} FLOPs" if power else "FLOPs")
    return next(Unit(size, text) for least, size, text in _UNITS[clock] if end >= least)


def _linear_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * (1 - 1e-9))
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [(i * step, _tick_text(i * step, decimals)) for i in range(first, last + 1)]


def _tick_text(value: float, decimals: int) -> str:
    if abs(value) >= 1e7 or decimals > 5:
        return f"{value:.2g}"
    return f"{value:,.{decimals}f}"


def _log_ticks(low: float, high: float, most: int) -> list[tuple[float, str]]:
    """Powers of ten, thinned to `most`; 2 and 5 times them too where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = max(1, -(-(last - first) // most))
    values = [float(f"{f}e{power}") for power in range(first, last + 1, every) for f in factors]
    return [(value, f"{value:.4g}") for value in values if low <= value <= high]
