"""Where a run reports: the terminal or log file, metrics.jsonl and the loggers; on rank 0."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import RunConfig
from megatron_slw.evaluation.tasks import Figures
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.parallel.groups import Groups
from megatron_slw.progress import Progress
from megatron_slw.slw.plan import Plan
from megatron_slw.train.growth_point import GrowthPoint, grown_from
from megatron_slw.train.loggers import open_loggers
from megatron_slw.train.metrics import MetricsWriter, StepMetrics
from megatron_slw.train.progress_display import ProgressDisplay


class Output:
    """Takes in what rank 0 has to report; nothing happens on the other ranks. A context manager."""

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        start: Progress,
        growth: GrowthRecord | None,
        groups: Groups,
        stop_after: int | None = None,
    ) -> None:
        """Open everything. Collective: what fails on rank 0 ends all ranks.

        Args:
            config: of the run.
            plan: its steps.
            start: what was trained before.
            growth: what the model grew by.
            groups: the ranks.
            stop_after: the step of the plan to which bar and time left are reckoned; None is its last.

        Raises:
            ConfigError: a logger cannot be opened.
            OSError: the run directory cannot be written; on rank 0, and ConfigError on the others.
        """
        self._stack = contextlib.ExitStack()
        self._sinks: list[Any] = []
        self.display: ProgressDisplay | None = None
        self.growth_point: GrowthPoint | None = None
        fault: Exception | None = None
        if groups.rank == 0:
            try:
                self._open(config, plan, start, growth, stop_after)
            except Exception as error:
                self._stack.close()
                fault = error
        if _somewhere(fault is not None, groups):
            raise fault or ConfigError("rank 0 could not open the logs of the run.")
        if config.training.grow_when == "auto":
            self.growth_point = GrowthPoint(config, groups)
            if self._sinks:
                self._sinks.append(self.growth_point)

    def _open(
        self, config: RunConfig, plan: Plan, start: Progress, growth: GrowthRecord | None, stop_after: int | None
    ) -> None:
        enter, logging = self._stack.enter_context, config.logging
        self.display = enter(ProgressDisplay(plan, start, logging.interval, stop_after=stop_after))
        loggers = enter(open_loggers(config, start, self.display.note))
        writer = MetricsWriter(logging.directory, start, grown_from(growth, start), loggers, self.display.note)
        self._sinks = [enter(writer), self.display]

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def step(self, metrics: StepMetrics) -> None:
        """One step was done."""
        for sink in self._sinks:
            sink.step(metrics)

    def evaluation(self, progress: Progress, loss: float) -> None:
        """A validation loss."""
        for sink in self._sinks:
            sink.evaluation(progress, loss)

    def skipped(self, record: dict[str, Any]) -> None:
        """A step was left out: its line of metrics.jsonl."""
        for sink in self._sinks:
            sink.skipped(record)

    def scores(self, progress: Progress, scores: Mapping[str, Figures]) -> None:
        """The figures of the tasks that ran, by task."""
        for sink in self._sinks:
            sink.scores(progress, scores)

    def growth_reached(self) -> str | None:
        """Why the run ends here for a larger model, the same on all ranks; collective."""
        return self.growth_point.reached() if self.growth_point is not None else None

    def replan(self, plan: Plan, text: str) -> None:
        """The plan has changed, and why."""
        if self.display is not None:
            self.display.replan(plan)
        self.note(text)

    def note(self, text: str) -> None:
        """A line for the person who watches."""
        if self.display is not None:
            self.display.note(text)


def _somewhere(failed: bool, groups: Groups) -> bool:
    """What rank 0 says, on every rank; collective."""
    flag = torch.tensor([failed], dtype=torch.int32, device=groups.device)
    if groups.world_size > 1:
        dist.broadcast(flag, 0)
    return bool(int(flag))
