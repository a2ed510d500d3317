"""What the tests of asynchronous saves run on each rank."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from megatron_slw.checkpoint.rank_files import write_tensors
from megatron_slw.checkpoint.save import save_checkpoint
from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.checkpoint.saver import Saver
from megatron_slw.checkpoint.snapshot import Snapshot
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.progress import Progress
from megatron_slw.train.job import build_job
from megatron_slw.train.learning_rate import learning_rate
from megatron_slw.train.loop import Job
from tests.checkpoint.jobs import full_disk, saved_state, writing_by


def one_step(job: Job, number: int) -> Progress:
    step, groups = job.plan.at(number), job.engine.groups
    blocks = job.train_data.read(step, groups.dp_rank, groups.dp_size)
    job.engine.train_step(blocks, step, learning_rate(job.config, job.plan, number, job.growth))
    return step.after


class Gate:
    """Writes no tensor before it is opened."""

    def __init__(self) -> None:
        self.opened, self.waited = threading.Event(), 0

    def __call__(self, *args: Any) -> Any:
        self.waited += 1
        assert self.opened.wait(60), "the gate was never opened"
        return write_tensors(*args)


def saved_later(config: RunConfig) -> list[str]:
    """A save after two steps that only begins to write two steps later; what is said."""
    job = build_job(config, build_groups(config.parallel))
    said: list[str] = []
    gate = Gate()
    with writing_by(gate), Saver(job.engine, job.checkpoints, said.append) as saver:
        for number in range(2):
            progress = one_step(job, number)
        saver.save(saved_state(job, progress))
        for number in range(2, 4):
            one_step(job, number)
            saver.poll()
        assert not said, "the save was over before it was written"
        gate.opened.set()
        saver.wait()
        assert gate.waited
    return said


def saved_at_once(config: RunConfig, beside: Path) -> None:
    """The same run's synchronous save to `beside`."""
    job = build_job(config, build_groups(config.parallel))
    for number in range(2):
        progress = one_step(job, number)
    save_checkpoint(job.engine, beside, saved_state(job, progress), 3)


def fails_in_flight(config: RunConfig, broken_rank: int) -> tuple[str, str, str]:
    """A save that one rank cannot write, the next one, and a last one that it cannot write either: what is said."""
    job = build_job(config, build_groups(config.parallel))
    said: list[str] = []
    is_broken = job.engine.groups.rank == broken_rank
    with Saver(job.engine, job.checkpoints, said.append) as saver:
        with full_disk(is_broken):
            saver.save(saved_state(job, one_step(job, 0)))
            try:
                saver.wait()
                first = said[-1]
            except SaveError as error:
                first = f"raised {error}"
        saver.save(saved_state(job, one_step(job, 1)))
        saver.wait()
        second = said[-1]
        try:
            with full_disk(is_broken):
                saver.save(saved_state(job, one_step(job, 2)), last=True)
            third = "saved"
        except SaveError as error:
            third = f"raised {error}"
    return first, second, third


def one_in_flight(config: RunConfig) -> list[str]:
    """Three saves in a row: each waits for the one before."""
    job = build_job(config, build_groups(config.parallel))
    said: list[str] = []
    with Saver(job.engine, job.checkpoints, said.append) as saver:
        for number in range(3):
            saver.save(saved_state(job, one_step(job, number)))
            assert len(said) == number, f"{said}: two saves at a time"
    return said


def copied_bytes(config: RunConfig) -> int:
    """Host memory that a rank's copy takes."""
    return Snapshot(build_job(config, build_groups(config.parallel)).engine).bytes
