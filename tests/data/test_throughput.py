"""The progress of preprocessing: lines off a terminal, a bar on one."""

from __future__ import annotations

import io

import pytest

from megatron_slw.data import throughput
from megatron_slw.data.preprocess import Counts


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_off_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(throughput.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    counts = Counts(total_bytes=100_000_000, start=100.0)
    with throughput.ThroughputReport(stream) as report:
        report(counts)
        assert stream.getvalue() == ""
        now[0] = 120.0
        counts.read_bytes, counts.documents, counts.tokens = 25_000_000, 1_234, 5_000_000
        report(counts)
        report(counts)
    line = "25 % | 1,234 documents  1.2 MB/s  0.25 Mtok/s  1:00 left\n"
    assert stream.getvalue() in (line, 2 * line) and stream.getvalue().startswith(line)


def test_a_bar_on_a_terminal() -> None:
    stream = Terminal()
    with throughput.ThroughputReport(stream) as report:
        report(Counts(total_bytes=100, read_bytes=50, documents=3))
    assert "50 %" in stream.getvalue() and "3 documents" in stream.getvalue()
