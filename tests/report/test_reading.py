"""How far the reading of long files is: every few seconds a line, and nothing for short ones."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from megatron_slw.report import reading
from megatron_slw.report.inputs import read_runs
from tests.report.run_files import step, write_run

MEGABYTE = 1 << 20


def test_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(reading.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with reading.ReadingReport(100 * MEGABYTE, stream) as report:
        for second in range(1, 26):
            now[0] = 100.0 + second
            report(MEGABYTE // 2)
            report(MEGABYTE // 2)
    assert stream.getvalue().splitlines() == ["reading 10 % | 1 MB/s  1:30 left", "reading 20 % | 1 MB/s  1:20 left"]


def test_every_byte_of_every_run_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr(reading.ReadingReport, "__call__", lambda self, count: counts.append(count))
    folders = [write_run(tmp_path / name, [step(n) for n in range(1, 4)]) for name in "ab"]
    read_runs([str(folder) for folder in folders])
    assert sum(counts) == sum((folder / "metrics.jsonl").stat().st_size for folder in folders)
