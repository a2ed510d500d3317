"""How far the reading of long runs is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from megatron_slw.train.units import duration_text

_LINE_SECONDS = 10.0
_STEP_BYTES = 1 << 20


class ReadingReport:
    """A context manager; call it with the bytes of each line. What is read in less than a second is not reported."""

    def __init__(self, total_bytes: int, stream: TextIO | None = None) -> None:
        self._total = total_bytes
        self._stream = stream or sys.stderr
        self._start = time.monotonic()
        self._next_line = self._start + _LINE_SECONDS
        self._read = self._unsaid = 0
        self._bar: Progress | None = None
        if self._stream.isatty():
            columns = (BarColumn(), TextColumn("{task.percentage:3.0f} %"), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(file=self._stream), transient=True)
            self._task = self._bar.add_task("", total=total_bytes)

    def __enter__(self) -> ReadingReport:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, count: int) -> None:
        self._unsaid += count
        if self._unsaid >= _STEP_BYTES:
            self._read += self._unsaid
            self._unsaid = 0
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        seconds = max(now - self._start, 1e-9)
        left = seconds * max(self._total - self._read, 0) / self._read
        text = f"{self._read / seconds / 1e6:.0f} MB/s  {duration_text(left)} left"
        if self._bar is not None:
            if seconds > 1:
                self._bar.start()
            self._bar.update(self._task, completed=self._read, description=text)
        elif now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            share = 100 * self._read // max(self._total, 1)
            print(f"reading {share} % | {text}", file=self._stream, flush=True)
