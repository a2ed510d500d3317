"""What a person sees of an evaluation: how far it is, how fast it goes, what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TextIO

from megatron_slw.train.units import duration_text, rate_text

LINE_SECONDS = 10.0
REFRESH_SECONDS = 0.2


class ScoringReport:
    """Says now and then how far a scoring is; call it with the tokens done and all tokens. A short one says nothing.

    Args:
        name: of the task.
        say: shows a line.
        seconds: between lines.
    """

    def __init__(self, name: str, say: Callable[[str], None], seconds: float = LINE_SECONDS) -> None:
        self._name, self._say, self._seconds = name, say, seconds
        self._start = time.monotonic()
        self._next = self._start + seconds

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._seconds
            self._say(scoring_line(self._name, done, total, now - self._start))


def scoring_line(name: str, done: int, total: int, seconds: float) -> str:
    """lambada 40 % | 5.1k tok/s | 0:12 left."""
    rate = done / max(seconds, 1e-9)
    left = (total - done) / rate if done else float("nan")
    return f"{name} {100 * done // max(total, 1)} % | {rate_text(rate)} tok/s | {duration_text(left)} left"


def report_to(stream: TextIO, name: str) -> ScoringReport:
    """On a terminal one line that is written over, elsewhere a line every few seconds."""
    terminal = stream.isatty()

    def say(text: str) -> None:
        print(f"\r\x1b[K{text}" if terminal else text, end="" if terminal else "\n", file=stream, flush=True)

    return ScoringReport(name, say, REFRESH_SECONDS if terminal else LINE_SECONDS)


def table(figures: Mapping[str, object]) -> str:
    """One figure a line."""
    width = max(len(name) for name in figures) + 2
    return "\n".join(f"{name:<{width}}{_text(value)}" for name, value in figures.items())


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
