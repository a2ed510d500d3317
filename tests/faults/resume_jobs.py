"""What the tests of resumes and of the token ledger run on each rank: whole runs that note what they trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.rank_files import RankFiles
from megatron_slw.checkpoint.saver import Saver
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.train import loop, output
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import Job
from tests.faults.policy_jobs import Fault, _break, _early_judge
from tests.faults.spike_jobs import whole_state


class Died(BaseException):
    """Stands for kill -9: nothing of the product catches it."""


def noted(config: RunConfig, faults: Mapping[int, Fault]) -> dict[str, Any]:
    """Train from wherever the run stands to its end; losses, token ids and a random number by step, and the state."""
    with _early_judge():
        job = build_job(config, build_groups(config.parallel))
        restored = whole_state(job.engine) if job.start.step else {}
        _break(job.engine, faults)
        losses, tokens, draws = {}, {}, {}
        whole = job.engine.train_step

        def train_step(blocks: Any, step: Any, *rest: Any) -> Any:
            tokens[step.step] = blocks.tokens_BT.copy()
            result = whole(blocks, step, *rest)
            losses[step.step], draws[step.step] = result.loss, float(torch.rand(()))
            return result

        job.engine.train_step = train_step  # type: ignore[method-assign]
        loop.train(job)
        return {
            "losses": losses,
            "tokens": tokens,
            "draws": draws,
            "restored": restored,
            "state": whole_state(job.engine),
            "start": job.start.step,
        }


def attempt(config: RunConfig, dies_at: int | None) -> dict[str, Any]:
    """Train until operation number `dies_at`, at which the process "dies", or to the end.

    Returns:
        The labels of each batch whose update was made, in order; by the step of a checkpoint how many of them it
        holds; the operations counted; the step it began with; whether it reached the end.
    """
    job = build_job(config, build_groups(config.parallel))
    trained: list[np.ndarray] = []
    holds: dict[int, int] = {}
    with _operations(job, trained, holds, dies_at) as count:
        try:
            loop.train(job)
            ended = True
        except Died:
            ended = False
    whole = all_labels(job) if ended else None
    state = whole_state(job.engine) if ended else {}
    return {
        "trained": trained, "holds": holds, "operations": count(), "start": job.start.step, "ended": ended,
        "planned": whole, "state": state, "plan": job.plan,
    }  # fmt: skip


def all_labels(job: Job) -> list[np.ndarray]:
    """The labels that the plan trains in each step, read anew."""
    return [_labels(job.train_data.read(step, 0, 1)) for step in map(job.plan.at, range(job.plan.total_steps))]


def _labels(blocks: Any) -> np.ndarray:
    labels: np.ndarray = blocks.labels_BT
    return labels.ravel() if blocks.loss_mask_BT is None else labels[blocks.loss_mask_BT > 0]


@contextlib.contextmanager
def _operations(
    job: Job, trained: list[np.ndarray], holds: dict[int, int], dies_at: int | None
) -> Iterator[Callable[[], int]]:
    """Count what changes the run's state, in memory or on disk, and die before or after one of it."""
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done == dies_at:
            raise Died

    def ticking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            tick()
            result = function(*args, **keywords)
            tick()
            return result

        return call

    step, saves = job.engine.train_step, Saver.save

    def train_step(blocks: Any, *rest: Any) -> Any:
        tick()
        result = step(blocks, *rest)
        trained.append(_labels(blocks))
        tick()
        return result

    def save(saver: Saver, state: Any, last: bool = False) -> None:
        holds[state.progress.step] = len(trained)
        saves(saver, state, last)

    places: list[tuple[Any, str]] = [
        (layout, "make_empty"), (layout, "write_json"), (layout, "sync"), (layout, "write_manifest"),
        (layout, "rename_complete"), (layout, "delete"), (RankFiles, "finish"),
        (output.Output, "step"), (output.Output, "evaluation"),
    ]  # fmt: skip
    kept = [getattr(owner, name) for owner, name in places]
    job.engine.train_step, Saver.save = train_step, save  # type: ignore[method-assign]
    for (owner, name), function in zip(places, kept, strict=True):
        setattr(owner, name, ticking(function))
    try:
        yield lambda: done
    finally:
        job.engine.train_step, Saver.save = step, saves  # type: ignore[method-assign]
        for (owner, name), function in zip(places, kept, strict=True):
            setattr(owner, name, function)
