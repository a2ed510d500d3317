"""What a run leaves behind for programs: metrics.jsonl, one object per step.

Only rank 0 writes. A step is named by the number of steps done, so the first record has step 1.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import Progress
from megatron_slw.train.line_file import LineFile

FILE_NAME = "metrics.jsonl"
EVENT = "event"
"""The key of a record that is neither of a step nor of an evaluation; its value is the kind."""
MAX_LINE = 1 << 16
"""Bytes; no record comes near it, and a file without line ends must not fill the memory."""
COUNTS = ("step", "articles", "documents", "examples", "bytes", "words", "tokens")
"""What an evaluation gives beside its scores."""
Record = dict[str, Any]
"""One line of the file; later versions may add keys."""


class TakesRecords(Protocol):
    """See `train.loggers`."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take in one line of the file."""


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did."""

    step: int
    """Steps done, this one included."""
    tokens: int
    """Trained so far, this step included."""
    samples: int
    """Trained so far, this step included."""
    seq_len: int
    loss: float
    """Mean over the global batch's labels, in nats."""
    lr: float
    grad_norm: float
    """Before clipping."""
    step_time_s: float
    tokens_per_s: float
    """Over all ranks."""
    mfu: float | None
    """Model FLOPs utilization, 0 to 1; None where the device's peak is not known."""
    loss_ratio: float = 1.0
    """Loss over the lowest of the steps before; see `slw.stability` for this and the next two."""
    loss_ratio_count: int = 0
    """Steps so far, this one included, whose loss ratio was above 1.2."""
    spike_score: float = 0.0
    """Share of the steps so far, this one included, that were spikes."""
    variance_sqrt_l1: float | None = None
    """L1 norm of the square root of Adam's second moment, after this step; None for SGD."""
    variance_sqrt_abs_max: float | None = None
    """Its largest element."""
    flops: int = 0
    """Model FLOPs of the training so far, this step included; see `estimate.plan_flops`."""
    tokens_discarded: int = 0
    """Labels of the samples read so far that were not trained."""


class MetricsWriter:
    """Appends to <directory>/metrics.jsonl line by line, and tells the loggers; a context manager, for rank 0 only.

    A resume goes on from a checkpoint, which is older than the last line where the run was killed. So the
    lines after `start.step` are cut off first: the file then holds each committed step once. The first record
    after a resume carries `"resumed": true`, that after a growth `"grown_from"`.
    """

    def __init__(
        self,
        directory: str | Path,
        start: Progress,
        grown: Mapping[str, Any] | None = None,
        loggers: Sequence[TakesRecords] = (),
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Open the file, making the directory if need be.

        Args:
            directory: the run directory.
            start: what the checkpoint had trained; Progress() for a new run.
            grown: what the first record says beside, of a run that begins with a grown checkpoint.
            loggers: told of each line after it was written; they are their owner's to close.
            note: tells the user where the disk refuses lines (see `train.line_file`); None logs it.

        Raises:
            OSError: the directory cannot be written.
        """
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FILE_NAME
        truncate_metrics(path, start.step)
        self._file = LineFile(path, note or logging.getLogger(__name__).warning)
        self._first: dict[str, Any] = {"resumed": True} if start.step > 0 else {}
        if grown is not None:
            self._first = dict(grown)
        self._loggers = loggers

    def step(self, metrics: StepMetrics) -> None:
        """Write one step."""
        self._write(asdict(metrics) | self._first)
        self._first = {}

    def evaluation(self, progress: Progress, val_loss: float) -> None:
        """Write the mean validation loss (nats per token, at full length) after `progress.step` steps."""
        self._write({"step": progress.step, "tokens": progress.tokens, "val_loss": val_loss})

    def skipped(self, record: Record) -> None:
        """Write that a step was left out."""
        self._write(record)

    def scores(self, progress: Progress, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Write the figures of the tasks that ran after `progress.step` steps, by task."""
        self._write({"step": progress.step, "tokens": progress.tokens, "scores": scores})

    def close(self) -> None:
        """Close the file; writing afterwards is an error."""
        self._file.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, record: Record) -> None:
        record = _finite(record)
        self._file.append(_line(record))
        for logger in self._loggers:
            logger.log(record)


def _finite(record: Record) -> Record:
    """JSON has no NaN or infinity, and readers in other languages stumble over them: they become null."""
    return {name: _finite_value(value) for name, value in record.items()}


def _finite_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _finite(dict(value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(record: Record) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def truncate_metrics(path: Path, step: int) -> None:
    """Drop the records after `step` steps, and lines that are no records, by writing a new file and renaming
    it.

    A kill in between leaves the old file. A missing file is left missing.
    """
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    damaged = 0
    with temporary.open("w", encoding="utf-8") as file:
        for _, record in _records(path):
            if record is None:
                damaged += 1
            elif record["step"] <= step and step > 0:
                file.write(_line(_finite(record)))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    if damaged:
        logging.getLogger(__name__).warning("%s: %d damaged lines were dropped", path, damaged)


def read_metrics(path: str | Path) -> tuple[list[Record], list[Record]]:
    """Return (step records, validation records) of a metrics.jsonl, in the order of the file.

    Raises:
        OSError, ConfigError: as `stream_metrics`.
    """
    steps: list[Record] = []
    evaluations: list[Record] = []
    for _, record in stream_metrics(path):
        (evaluations if "val_loss" in record else steps).append(record)
    return steps, evaluations


def stream_metrics(
    path: str | Path, on_bytes: Callable[[int], None] | None = None, scores: bool = False
) -> Iterator[tuple[int, Record]]:
    """Yield (line number from 1, record) of a metrics.jsonl, one line in memory at a time.

    A last line that a kill cut off is left out, and so are events.

    Args:
        path: of the file.
        on_bytes: called with the length of each line that was read.
        scores: also yield the records of tasks, which have "scores", beside those of steps and validations.

    Raises:
        OSError: the file cannot be read.
        ConfigError: another line is no record; the message has its number.
    """
    damaged: int | None = None
    for number, record in _records(Path(path), on_bytes):
        if damaged is not None:
            raise ConfigError(f"{path}: line {damaged} is no metrics record: restore or remove the line")
        if record is None:
            damaged = number
        elif EVENT not in record and (scores or "scores" not in record):
            yield number, record


def read_events(path: str | Path) -> list[Record]:
    """Return the records of what happened beside steps and evaluations: steps that were left out."""
    return [record for _, record in _records(Path(path)) if record is not None and EVENT in record]


def _records(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[tuple[int, Record | None]]:
    """Yield (line number from 1, record), the record None where the line is not one."""
    with path.open("rb") as file:  # a cut may fall inside a character: decoding is per line
        for number, line in enumerate(iter(partial(file.readline, MAX_LINE), b""), start=1):
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            valid = isinstance(record, dict) and type(record.get("step")) is int
            if on_bytes is not None:
                on_bytes(len(line))
            yield number, record if valid else None
