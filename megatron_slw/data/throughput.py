"""How far preprocessing is: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from megatron_slw.data.preprocess import Counts
from megatron_slw.data.sidecar import Sidecar

_LINE_SECONDS = 10.0


class ThroughputReport:
    """A context manager; call it with the counts after each piece."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._next_line = time.monotonic() + _LINE_SECONDS
        self._bar: Progress | None = None
        if stream.isatty():
            columns = (
                BarColumn(None),
                TextColumn("{task.percentage:3.0f} %"),
                TextColumn("{task.description}"),
            )
            self._bar = Progress(*columns, console=Console(file=stream), expand=True)
            self._task = self._bar.add_task("")

    def __enter__(self) -> ThroughputReport:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, counts: Counts) -> None:
        if self._bar is not None:
            text = throughput(counts)
            self._bar.update(self._task, completed=counts.read_bytes, total=counts.total_bytes, description=text)
        elif time.monotonic() >= self._next_line:
            self._next_line += _LINE_SECONDS
            done = f"{100 * counts.read_bytes // counts.total_bytes} % | " if counts.total_bytes else ""
            print(done + throughput(counts), file=self._stream, flush=True)

    def say(self, line: str) -> None:
        """Print a line for the user, above the bar."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=self._stream, flush=True)


def throughput(counts: Counts) -> str:
    """`601 documents  4.1 MB/s  1.02 Mtok/s  0:12 left`, the rates those of this run."""
    seconds = max(time.monotonic() - counts.start, 1e-9)
    read, tokens = counts.read_bytes - counts.earlier_bytes, counts.tokens - counts.earlier_tokens
    line = f"{counts.documents:,} documents  {read / seconds / 1e6:.1f} MB/s  {tokens / seconds / 1e6:.2f} Mtok/s"
    if not counts.total_bytes:
        return line
    left = round(seconds * (counts.total_bytes - counts.read_bytes) / max(read, 1))
    return f"{line}  {left // 60}:{left % 60:02} left"


def summary(prefix: str, sidecar: Sidecar, seconds: float) -> str:
    """The line that closes preprocessing, about the dataset at `prefix`."""
    text_bytes = sidecar.text_bytes or 0
    line = (
        f"{prefix}  {sidecar.documents:,} documents  {sidecar.tokens:,} tokens  "
        f"{text_bytes / 1e6:.1f} MB of text  {text_bytes / max(sidecar.tokens, 1):.2f} bytes/token  "
        f"{seconds:.1f} s  {sidecar.tokens / max(seconds, 1e-9) / 1e6:.2f} Mtok/s"
    )
    if sidecar.empty_documents:
        line += f"  ({sidecar.empty_documents:,} empty documents left out)"
    return line


def bad_documents(sidecar: Sidecar) -> str:
    """The table of what --on-error did, a line for each kind; empty where every document was as it should be."""
    rows = [(f"left out: {kind.replace('_', ' ')}", number) for kind, number in sidecar.skipped_documents.items()]
    if sidecar.replaced_documents:
        rows.append(("bytes replaced by U+FFFD", sidecar.replaced_documents))
    return "\n".join(f"  {name:<28}{number:>12,} documents" for name, number in rows)
