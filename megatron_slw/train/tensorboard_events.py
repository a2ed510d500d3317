"""Scalars for TensorBoard, written with its own event writer, so that no torch is needed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.progress import Progress
from megatron_slw.train.metrics import COUNTS

NOT_DRAWN = ("step", "samples", "step_time_s")
DRAWN_OF_SKIPPED = ("tokens_skipped", "loss", "grad_norm")
BY_TOKENS = (
    "train/loss", "train/loss_ratio", "train/grad_norm", "train/variance_sqrt_l1", "train/variance_sqrt_abs_max",
    "validation/loss",
)  # fmt: skip
"""What runs of different lengths are compared by: equal tokens, not equal steps."""


def scalars_of(record: Mapping[str, Any]) -> dict[str, float]:
    """What is drawn of a line of metrics.jsonl: a step's numbers as train/KEY, a validation loss as validation/loss,
    a task's scores as tasks/TASK/KEY, and as skipped/KEY what there is of a step that was left out.

    What is no finite number is left out.
    """
    if "val_loss" in record:
        values = {"validation/loss": record["val_loss"]}
    elif "event" in record:
        values = {f"skipped/{key}": record[key] for key in DRAWN_OF_SKIPPED}
    elif "scores" in record:
        values = {
            f"tasks/{task}/{key}": value
            for task, figures in record["scores"].items()
            for key, value in figures.items()
            if key not in COUNTS
        }
    else:
        values = {f"train/{key}": value for key, value in record.items() if key not in NOT_DRAWN}
    return {tag: value for tag, value in values.items() if type(value) in (int, float) and math.isfinite(value)}


class TensorBoardWriter:
    """Scalars against steps in <directory>/by_step, some against tokens in <directory>/by_tokens.

    Two runs, because a resume makes TensorBoard forget what lies after the step it begins with, whatever the
    tag: one run must not mix two kinds of steps.

    Raises:
        ConfigError: the tensorboard package is missing.
    """

    def __init__(self, directory: Path, start: Progress) -> None:
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                "logging.tensorboard needs the package tensorboard: pip install tensorboard, or set it to false."
            ) from error
        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._by_step = EventFileWriter(str(directory / "by_step"))
        self._by_tokens = EventFileWriter(str(directory / "by_tokens"))
        if start.step > 0:
            for writer, last in ((self._by_step, start.step), (self._by_tokens, start.tokens)):
                restart = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                writer.add_event(self._event(wall_time=time.time(), step=last + 1, session_log=restart))

    def log(self, record: Mapping[str, Any]) -> None:
        """Write a line of metrics.jsonl."""
        values = scalars_of(record)
        self._add(self._by_step, record["step"], values)
        drawn = {f"{tag}_by_tokens": value for tag, value in values.items() if tag in BY_TOKENS or "tasks/" in tag}
        self._add(self._by_tokens, record["tokens"], drawn)

    def close(self) -> None:
        """Write out what is buffered and end the writers' threads."""
        self._by_step.close()
        self._by_tokens.close()

    def _add(self, writer: Any, step: int, values: Mapping[str, float]) -> None:
        entries = [self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        if entries:
            writer.add_event(
                self._event(wall_time=time.time(), step=step, summary=self._summary(value=entries))
            )
