"""What becomes of a step that the engine refused: the run stops, leaves it out, or goes back and leaves out its
neighbours too. All ranks decide alike: on equal numbers, and on the checkpoint that rank 0 finds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.resume import restore, verify_together
from megatron_slw.checkpoint.skip_journal import read_journal, write_journal
from megatron_slw.slw.adaptive import AdaptivePacing
from megatron_slw.slw.compile import compile_plan
from megatron_slw.slw.plan import BatchStep
from megatron_slw.slw.skipped import Skip, Skipped, finite
from megatron_slw.train.engine import StepRefused

if TYPE_CHECKING:
    from megatron_slw.train.loop import Job

LIMIT_STEPS = 1000


class RollBack(Exception):  # noqa: N818 - no error: the run goes on from an older checkpoint
    """Training goes on from `checkpoint`, with what was decided in the journal."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__(f"back to {checkpoint}")
        self.checkpoint = checkpoint


def decide(
    job: Job, step: BatchStep, skipped: Skipped, refusal: StepRefused, settle: Callable[[], None]
) -> tuple[Skip, Path | None]:
    """What is left out, and the checkpoint to go back to; written down durably before anything goes on. Collective.

    Args:
        job: the run.
        step: that was refused.
        skipped: what was left out so far.
        refusal: why.
        settle: waits for a checkpoint that is still being written.

    Raises:
        StepRefused: the run stops.
        SaveError: the decision could not be written down.
        ConfigError: the checkpoint to go back to is damaged.
    """
    training = job.config.training
    if training.on_spike in (None, "stop"):
        raise refusal
    faults = skipped.faults_since(step.step - LIMIT_STEPS)
    if faults >= training.spike_limit:
        raise _stopped(
            refusal,
            f"It is fault number {faults + 1} within {LIMIT_STEPS:,} steps, and training.spike_limit is "
            f"{training.spike_limit}.",
        )
    values = refusal.reason, finite(refusal.loss), finite(refusal.grad_norm)
    skip, checkpoint = Skip(step.step, step.step + 1, step.step, *values), None
    if training.on_spike == "rollback":
        settle()
        checkpoint = _last_checkpoint(job, step.step)
        if checkpoint is None:
            raise _stopped(refusal, "There is no checkpoint to go back to yet; lower checkpoint.interval.")
        opened = Checkpoint(checkpoint)
        verify_together(opened, job.engine.groups)
        back_to, before = opened.progress.step, training.rollback_steps // 2
        first = max(back_to, step.step - before)
        stop = step.step + max(1, training.rollback_steps - before)
        if stop >= job.plan.total_steps:
            raise _stopped(
                refusal,
                f"A rollback would leave out the steps {first + 1} to {stop}, and with them all that is left of the "
                f"run's {job.plan.total_steps}; lower training.rollback_steps (now {training.rollback_steps}).",
            )
        skip = Skip(first, stop, step.step, *values, back_to=back_to)
    write_journal(job.checkpoints, skipped.with_skip(skip), job.engine.groups)
    return skip, checkpoint


def _last_checkpoint(job: Job, step: int) -> Path | None:
    """The newest complete checkpoint up to a step, else the one that the run began with; rank 0 looks. Collective."""
    saved = [int(path.name.partition("_")[2]) for path in layout.complete_checkpoints(job.checkpoints)]
    newest = max((number for number in saved if number <= step), default=-1)
    found = torch.tensor([newest], device=job.engine.groups.device)
    if job.engine.groups.world_size > 1:
        dist.broadcast(found, 0)
    if int(found) >= 0:
        return layout.step_folder(job.checkpoints, int(found))
    return Path(job.config.checkpoint.load) if job.config.checkpoint.load is not None else None


def rolled_back(job: Job, path: Path) -> Job:
    """The run as it was at a checkpoint, and what is to be left out from there on. Collective."""
    checkpoint = Checkpoint(path)
    restore(job.engine, checkpoint)
    state = checkpoint.state
    pacing = (state.pacing or AdaptivePacing()) if job.pacing is not None else None
    return replace(
        job,
        plan=compile_plan(job.config, pacing.decisions if pacing is not None else ()),
        start=state.progress,
        stability=state.stability,
        spike_window=state.spike_window,
        skipped=state.skipped.joined(read_journal(job.checkpoints).skips),
        pacing=pacing,
    )


def _stopped(refusal: StepRefused, why: str) -> StepRefused:
    return StepRefused(f"{refusal} {why}", refusal.reason, refusal.loss, refusal.grad_norm)
