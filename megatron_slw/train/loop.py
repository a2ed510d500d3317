"""The training loop: the plan decides, the loader reads, the engine trains, progress advances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_slw.checkpoint.saver import Saver
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.config.curriculum_rules import warnings
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.loader import TrainLoader, ValidLoader
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.model.head import operators_of
from megatron_slw.ops.table import served_by
from megatron_slw.progress import Progress
from megatron_slw.slw.adaptive import AdaptivePacing
from megatron_slw.slw.compile import compile_plan, plan_of
from megatron_slw.slw.plan import Plan
from megatron_slw.slw.resolve import resolve_schedules
from megatron_slw.slw.skipped import Skipped
from megatron_slw.slw.spikes import SpikeWindow
from megatron_slw.slw.stability import Stability
from megatron_slw.train.engine import Engine
from megatron_slw.train.estimate import parameters
from megatron_slw.train.evaluate import validation_loss
from megatron_slw.train.output import Output
from megatron_slw.train.refusal import RollBack, rolled_back
from megatron_slw.train.signals import StopRequest
from megatron_slw.train.step import Measured, pass_step
from megatron_slw.train.task_schedule import ScheduledTask, run_tasks
from megatron_slw.train.units import count_text
from megatron_slw.train.watch import Watch


@dataclass(frozen=True)
class Job:
    """Everything a run is made of, built once by `job.build_job`."""

    config: RunConfig
    plan: Plan
    engine: Engine
    train_data: TrainLoader
    valid_data: ValidLoader | None
    dataset: dict[str, Any] | None
    """What identifies the training data; saved with each checkpoint."""
    start: Progress
    stability: Stability
    """What was measured before `start`."""
    spike_window: SpikeWindow
    """What the first steps are judged by."""
    skipped: Skipped
    """Steps that were left out before `start`, and those that will be."""
    tasks: tuple[ScheduledTask, ...]
    growth: GrowthRecord | None
    """What the model grew by; None for one that never grew."""
    pacing: AdaptivePacing | None
    """What a loss_adaptive schedule had decided before `start`; None of any other schedule."""
    checkpoints: Path
    peak_flops: float | None
    """Of all devices together; None where it is not known."""


def train(job: Job, stop_after: int | None = None, watch: Watch | None = None) -> Progress:
    """Train from `job.start` to the end of the plan, to a growth point, or until a signal; saves either way.

    Args:
        job: what to train.
        stop_after: stop after this step of the plan, evaluated and saved, as if a signal came; plan and learning rate
            are those of the whole run.
        watch: is told what the loop is at.

    Returns:
        What was trained; less than the plan if the run was stopped.

    Raises:
        StepRefused: a loss or gradient norm is not finite or stands out, and the run stops there; nothing was updated
            or saved for that step.
        OutOfMemory: on a rank whose memory did not suffice.
        SaveError: a checkpoint could not be written.
    """
    while True:
        try:
            return _train(job, stop_after, watch)
        except RollBack as decision:
            job = rolled_back(job, decision.checkpoint)


def _train(job: Job, stop_after: int | None, watch: Watch | None) -> Progress:
    config, progress, pacing = job.config, job.start, job.pacing
    measured = Measured(job.stability, job.spike_window, job.skipped)
    curriculum = resolve_schedules(config, plan_of).curriculum
    at: Callable[[str], None] = watch.at if watch is not None else lambda _: None
    with (
        _output(job, stop_after) as output,
        StopRequest(job.engine.groups) as stop,
        Saver(job.engine, job.checkpoints, output.note) as saver,
    ):
        output.note(_greeting(job, stop_after))
        output.note(served_by(config.ops.backend, operators_of(config, job.engine.groups)))
        for warning in warnings(config):
            output.note(f"warning: {warning}")
        reached = output.growth_reached()
        while reached is None and progress.step < _end(job.plan, stop_after):
            step = job.plan.at(progress.step)
            at(f"step {step.step + 1}")
            result, measured = pass_step(job, step, measured, output, saver.wait)
            progress = step.after
            if result is not None and pacing is not None and curriculum is not None:
                decided, pacing = pacing.decisions, pacing.after(step.step, result.loss, curriculum)
                if pacing.decisions != decided:
                    job = replace(job, plan=compile_plan(config, pacing.decisions))
                    output.replan(job.plan, f"the loss stands still: length {pacing.length(curriculum)} from here on")
            saver.poll()
            stopping = stop.agreed()
            last = progress.step == _end(job.plan, stop_after)
            trained = measured.skipped.trained(job.plan, progress)
            if job.valid_data is not None and _due(progress.step, config.evaluation.interval, last):
                at(f"the evaluation after step {progress.step}")
                output.evaluation(trained, validation_loss(job.engine, job.valid_data, config))
                reached = output.growth_reached()
            ends = last or reached is not None
            if job.tasks:
                at(f"the tasks after step {progress.step}")
            if scores := run_tasks(job.engine, job.tasks, progress.step, ends, output.note):
                output.scores(trained, scores)
            if stopping or reached or _due(progress.step, config.checkpoint.interval, last):
                at(f"the save after step {progress.step}")
                state = _state(job, progress, measured, pacing)
                saver.save(state, last=bool(stopping or reached or last))
            if stopping:
                output.note(
                    f"stopped by {stopping} after step {progress.step} of {job.plan.total_steps}; the same command "
                    "goes on."
                )
                break
        if reached is not None:
            output.note(f"{reached}; the stage ends here. Grow it, or go on with --training.grow_when=null.")
        elif _end(job.plan, stop_after) <= progress.step < job.plan.total_steps:
            left = f"stopped after step {progress.step} of {job.plan.total_steps}"
            output.note(f"{left}; without --stop-after the same command goes on.")
    return progress


def _output(job: Job, stop_after: int | None) -> Output:
    start = job.skipped.trained(job.plan, job.start)
    return Output(job.config, job.plan, start, job.growth, job.engine.groups, stop_after)


def _greeting(job: Job, stop_after: int | None) -> str:
    """One line on what is about to happen."""
    model, plan, groups = job.config.model, job.plan, job.engine.groups
    size = f"{model.num_layers} layers x {model.hidden_size} ({count_text(parameters(model))} parameters)"
    layout = f"{groups}, ZeRO {job.config.zero_stage}, {job.config.precision}"
    if job.start.step == plan.total_steps:
        return f"{size} on {layout}: trained to its last step {plan.total_steps} already"
    lengths = [run.seq_len for run in plan.runs]
    length = f"length {lengths[0]}" if len(lengths) == 1 else f"lengths {min(lengths)} to {max(lengths)}"
    end = _end(plan, stop_after)
    step = f"{end}" if end == plan.total_steps else f"{end} of {plan.total_steps}"
    goal = f"to step {step} ({count_text(plan.progress_at(end).tokens)} tokens, {length})"
    return f"{size} on {layout}: {f'resumed at step {job.start.step}, ' if job.start.step else ''}{goal}"


def _state(job: Job, progress: Progress, measured: Measured, pacing: AdaptivePacing | None) -> TrainingState:
    return TrainingState(
        progress,
        job.plan,
        job.config,
        job.dataset,
        measured.stability,
        measured.spike_window,
        measured.skipped,
        job.growth,
        pacing,
    )


def _end(plan: Plan, stop_after: int | None) -> int:
    return plan.total_steps if stop_after is None else min(stop_after, plan.total_steps)


def _due(step: int, interval: int, last: bool) -> bool:
    return last or (interval > 0 and step % interval == 0)
