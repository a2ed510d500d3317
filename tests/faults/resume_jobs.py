"""What the tests of resumes and of the token ledger run on each rank: whole runs that note what they trained."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.rank_files import RankFiles
from megatron_slw.checkpoint.saver import Saver
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups, init_distributed
from megatron_slw.parallel.launch import Launch
from megatron_slw.train import loop, output
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import Job
from tests.faults.kill_jobs import quiet
from tests.faults.killing import kill
from tests.faults.policy_jobs import Fault, _break, _early_judge
from tests.faults.spike_jobs import whole_state


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


def attempt(rank: int, world: int, store: Path, config: RunConfig, dies_at: int | None, notes: str) -> None:
    """Train in a process of its own, killed by itself at operation number `dies_at`, or to the end.

    Appends to the file `notes`, a JSON object a line: the step it began with; the labels of each batch whose update
    was made; by the step of a save, how many of these batches it holds; at its end, the labels of the whole plan, and
    beside the file, as .npz, the state.
    """
    torch.set_num_threads(1)
    quiet()
    init_distributed(Launch(rank, world, rank, is_launched=True), store=store, timeout_s=60)
    job = build_job(config, build_groups(config.parallel))
    with open(notes, "a") as file:

        def note(**what: Any) -> None:
            file.write(json.dumps(what) + "\n")
            file.flush()  # the system has it, whatever becomes of this process

        note(start=job.start.step)
        with _operations(job, note, dies_at):
            loop.train(job)
        note(planned=all_labels(job))
        np.savez(f"{notes}.npz", **whole_state(job.engine))
    os._exit(0)


def all_labels(job: Job) -> list[list[int]]:
    """The labels that the plan trains in each step, read anew."""
    return [_labels(job.train_data.read(step, 0, 1)) for step in map(job.plan.at, range(job.plan.total_steps))]


def _labels(blocks: Any) -> list[int]:
    labels: np.ndarray = blocks.labels_BT
    return (labels.ravel() if blocks.loss_mask_BT is None else labels[blocks.loss_mask_BT > 0]).tolist()


@contextlib.contextmanager
def _operations(job: Job, note: Callable[..., None], dies_at: int | None) -> Iterator[None]:
    """Count what changes the run's state, in memory or on disk, and die before or after one of it."""
    done = trained = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if done == dies_at:
            kill()

    def ticking(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            tick()
            result = function(*args, **keywords)
            tick()
            return result

        return call

    step, saves = job.engine.train_step, Saver.save

    def train_step(blocks: Any, *rest: Any) -> Any:
        nonlocal trained
        tick()
        result = step(blocks, *rest)
        trained += 1
        note(trained=_labels(blocks))
        tick()
        return result

    def save(saver: Saver, state: Any, last: bool = False) -> None:
        note(saved=state.progress.step, holds=trained)
        saves(saver, state, last)

    job.engine.train_step = train_step  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Saver, "save", save)
        for owner, name in (
            (layout, "make_empty"), (layout, "write_json"), (layout, "sync"), (layout, "write_manifest"),
            (layout, "rename_complete"), (layout, "delete"), (RankFiles, "finish"),
            (output.Output, "step"), (output.Output, "evaluation"),
        ):  # fmt: skip
            patch.setattr(owner, name, ticking(getattr(owner, name)))
        yield
