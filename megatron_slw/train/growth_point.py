"""training.grow_when auto: the run ends where its loss curve says that a larger model should take over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.growth.planner.points import Reader
from megatron_slw.growth.planner.watch import growth_point
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.parallel.groups import Groups
from megatron_slw.progress import Progress
from megatron_slw.train.metrics import FILE_NAME, Record, StepMetrics, stream_metrics


class GrowthPoint:
    """Watches rank 0's metrics, those of metrics.jsonl first, and makes its verdict everybody's."""

    def __init__(self, config: RunConfig, groups: Groups) -> None:
        """Read what the run has written so far; metrics.jsonl must have been cut to the step it goes on from."""
        self._slope, self._groups = config.training.grow_slope, groups
        self._reader = Reader(config.model.seq_length)
        path = Path(config.logging.directory) / FILE_NAME
        if groups.rank == 0:
            for number, record in stream_metrics(path):
                try:
                    self._reader.take(record)
                except ConfigError as error:
                    raise ConfigError(f"{path}: line {number} {error}") from None

    def step(self, metrics: StepMetrics) -> None:
        """A step; rank 0 alone."""
        self._reader.take(asdict(metrics))

    def evaluation(self, progress: Progress, loss: float) -> None:
        """A validation loss; rank 0 alone."""
        self._reader.take({"tokens": progress.tokens, "val_loss": loss})

    def skipped(self, record: Record) -> None:
        """A step that was left out; it says nothing of the curve."""

    def scores(self, progress: Progress, scores: Mapping[str, Any]) -> None:
        """The figures of tasks, by which it does not judge."""

    def reached(self) -> str | None:
        """Why the run should end here, the same on all ranks but for the words; None if it should not. Collective."""
        verdict = growth_point(self._reader, self._slope) if self._groups.rank == 0 else None
        flag = torch.tensor([verdict is not None], dtype=torch.int32, device=self._groups.device)
        if self._groups.world_size > 1:
            dist.broadcast(flag, 0)
        if not int(flag):
            return None
        return f"{verdict} (training.grow_slope {self._slope:g})"


def grown_from(growth: GrowthRecord | None, start: Progress) -> dict[str, Any] | None:
    """What the first record of a run says of the growth that it goes on from; None if it goes on from no growth.

    Returns:
        "grown_from", the smaller model and its step in words, and "lr_shift_tokens", as `GrowthRecord`'s.
    """
    if growth is None or not growth.history:
        return None
    when = growth.history[-1].partition(":")[0]
    if growth.step != start.step and when != f"step {start.step}":  # exact dynamics keep an earlier growth's step
        return None
    first = next(line for line in growth.history if line.startswith(f"{when}:"))  # of several stages at one step
    sizes = first.partition(": ")[2].partition(" -> ")[0]
    return {"grown_from": f"{sizes} at {when}", "lr_shift_tokens": growth.lr_shift_tokens}
