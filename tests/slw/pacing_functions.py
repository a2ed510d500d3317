"""Functions that a configuration may name, right ones and wrong ones."""

from __future__ import annotations


def sawtooth(t: int, low: int, high: int) -> int:
    return high if t % 3 == 0 else low


def too_long(t: int, low: int, high: int) -> int:
    return high + 1


def a_float(t: int, low: int, high: int) -> float:
    return float(low)


def failing(t: int, low: int, high: int) -> int:
    raise RuntimeError("no idea")


NUMBER = 3
