"""Whole runs with faults at chosen steps, as pretrain_gpt.py makes them once the processes have met."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.slw import spikes
from megatron_slw.train import loop
from megatron_slw.train.engine import Engine, StepRefused
from megatron_slw.train.job import build_job
from megatron_slw.train.learning_rate import learning_rate
from tests.faults.spike_jobs import FACTORS, faulty, whole_state

Fault = tuple[str, str, int, int]
"""(kind, place, rank, how often it happens)."""
LEAST_VALUES = 4
"""In place of 63, so that a run of few steps has a spike."""


class Killed(RuntimeError):
    """Stands for kill -9 after a decision was written down."""


@contextlib.contextmanager
def _early_judge() -> Iterator[None]:
    usual, spikes.LEAST_VALUES = spikes.LEAST_VALUES, LEAST_VALUES
    try:
        yield
    finally:
        spikes.LEAST_VALUES = usual


@contextlib.contextmanager
def _dies_before_going_back() -> Iterator[None]:
    def die(*_: Any) -> Any:
        raise Killed

    usual, loop.rolled_back = loop.rolled_back, die
    try:
        yield
    finally:
        loop.rolled_back = usual


def _break(engine: Engine, faults: Mapping[int, Fault]) -> None:
    """Make the engine's steps meet faults, each as often as it says."""
    whole, left = engine.train_step, {number: fault[3] for number, fault in faults.items()}

    def train_step(blocks: Any, step: Any, *rest: Any) -> Any:
        if not left.get(step.step):
            return whole(blocks, step, *rest)
        left[step.step] -= 1
        kind, place, rank, _ = faults[step.step]
        with faulty(engine, place, FACTORS[kind], rank):
            return whole(blocks, step, *rest)

    engine.train_step = train_step  # type: ignore[method-assign]


def run(
    config: RunConfig, faults: Mapping[int, Fault] | None = None, stop_after: int | None = None, killed: bool = False
) -> dict[str, Any]:
    """Train from wherever the run stands; the state in the end, and what ended it."""
    with _early_judge(), _dies_before_going_back() if killed else contextlib.nullcontext():
        job = build_job(config, build_groups(config.parallel))
        _break(job.engine, faults or {})
        error, progress = "", job.start
        try:
            progress = loop.train(job, stop_after)
        except (StepRefused, Killed) as found:
            error = f"{type(found).__name__}: {found}"
        return {"state": whole_state(job.engine), "error": error, "progress": progress, "start": job.start.step}


def without(config: RunConfig, left_out: tuple[int, ...], until: int) -> dict[str, Any]:
    """The run that never saw some steps, by a loop of its own: losses, random draws and the state in the end."""
    job = build_job(config, build_groups(config.parallel))
    groups, losses, draws = job.engine.groups, {}, {}
    for number in range(until):
        if number in left_out:
            continue
        step = job.plan.at(number)
        blocks = job.train_data.read(step, groups.dp_rank, groups.dp_size)
        rate = learning_rate(job.config, job.plan, number)
        losses[number + 1] = job.engine.train_step(blocks, step, rate).loss
        draws[number + 1] = float(torch.rand(()))
    return {"state": whole_state(job.engine), "losses": losses, "draws": draws}

