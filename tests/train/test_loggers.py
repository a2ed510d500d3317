"""Loggers get each line of metrics.jsonl; one that fails is told no more, and says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_slw.progress import Progress
from megatron_slw.train.loggers import GuardedLogger
from megatron_slw.train.metrics import FILE_NAME, MetricsWriter, read_metrics
from tests.train.test_metrics import metrics, progress


class Listener:
    """Keeps what it is told; fails at a step, or when it is closed."""

    def __init__(self, fails_at: int | None = None, fails_in_close: bool = False) -> None:
        self.fails_at, self.fails_in_close = fails_at, fails_in_close
        self.records: list[Mapping[str, Any]] = []

    def log(self, record: Mapping[str, Any]) -> None:
        if record["step"] == self.fails_at:
            raise OSError("no\nspace")
        self.records.append(record)

    def close(self) -> None:
        if self.fails_in_close:
            raise RuntimeError("no network")


def run(folder: Path, listener: Listener) -> list[str]:
    """Four steps and an evaluation; what was noted."""
    notes: list[str] = []
    guarded = GuardedLogger("logging.x", listener, notes.append)
    with MetricsWriter(folder, Progress(), loggers=[guarded]) as writer:
        for step in range(1, 5):
            writer.step(metrics(step, grad_norm=float("inf")))
        writer.evaluation(progress(4), 3.5)
    guarded.close()
    return notes


def test_a_logger_gets_the_lines_of_the_file(tmp_path: Path) -> None:
    listener = Listener()
    assert run(tmp_path, listener) == []
    steps, evaluations = read_metrics(tmp_path / FILE_NAME)
    assert listener.records == steps + evaluations
    assert listener.records[0]["grad_norm"] is None


def test_a_failure_is_told_at_once_and_in_the_end_and_the_file_is_whole(tmp_path: Path) -> None:
    listener = Listener(fails_at=2)
    first, last = run(tmp_path, listener)
    assert first == last and "logging.x failed at step 2 (OSError: no space)" in first, first
    assert [record["step"] for record in listener.records] == [1], "it was told more"
    assert len(read_metrics(tmp_path / FILE_NAME)[0]) == 4


def test_a_failure_to_close_is_told(tmp_path: Path) -> None:
    (note,) = run(tmp_path, Listener(fails_in_close=True))
    assert "at its end (RuntimeError: no network)" in note


def test_ctrl_c_in_a_logger_is_no_failure_of_it(tmp_path: Path) -> None:
    class Interrupted(Listener):
        def log(self, record: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt("twice")

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Interrupted())
