"""The training loop: the plan decides, the loader reads, the engine trains, progress advances."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_slw.checkpoint.save import save_checkpoint
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.config.curriculum_rules import warnings
from megatron_slw.config.schema import RunConfig
from megatron_slw.data.loader import TrainLoader, ValidLoader
from megatron_slw.growth.record import GrowthRecord
from megatron_slw.progress import Progress
from megatron_slw.slw.adaptive import AdaptivePacing
from megatron_slw.slw.compile import compile_plan, plan_of
from megatron_slw.slw.plan import BatchStep, Plan
from megatron_slw.slw.resolve import resolve_schedules
from megatron_slw.slw.stability import Stability
from megatron_slw.train.engine import Engine, StepResult
from megatron_slw.train.estimate import flops_per_token, parameters, plan_flops
from megatron_slw.train.evaluate import validation_loss
from megatron_slw.train.learning_rate import learning_rate
from megatron_slw.train.metrics import StepMetrics
from megatron_slw.train.optimizer_statistics import VarianceSqrt, variance_sqrt
from megatron_slw.train.output import Output
from megatron_slw.train.rehearsal import explained_out_of_memory
from megatron_slw.train.signals import StopRequest
from megatron_slw.train.units import count_text


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
    growth: GrowthRecord | None
    """What the model grew by; None for one that never grew."""
    pacing: AdaptivePacing | None
    """What a loss_adaptive schedule had decided before `start`; None of any other schedule."""
    checkpoints: Path
    peak_flops: float | None
    """Of all devices together; None where it is not known."""


def train(job: Job, stop_after: int | None = None) -> Progress:
    """Train from `job.start` to the end of the plan, to a growth point, or until a signal; saves either way.

    Args:
        job: what to train.
        stop_after: stop after this step of the plan, evaluated and saved, as if a signal came; plan and learning rate
            are those of the whole run.

    Returns:
        What was trained; less than the plan if the run was stopped.

    Raises:
        NonFiniteError: a loss or gradient norm is not finite; nothing was updated or saved for that step.
        OutOfMemory: on a rank whose memory did not suffice.
        SaveError: a checkpoint could not be written.
    """
    config, progress, stability, pacing = job.config, job.start, job.stability, job.pacing
    curriculum = resolve_schedules(config, plan_of).curriculum
    with _output(job, stop_after) as output, StopRequest(job.engine.groups) as stop:
        output.note(_greeting(job, stop_after))
        for warning in warnings(config):
            output.note(f"warning: {warning}")
        reached = output.growth_reached()
        while reached is None and progress.step < _end(job.plan, stop_after):
            step = job.plan.at(progress.step)
            result, stability = _train_one(job, step, stability, output)
            progress = step.after
            if pacing is not None and curriculum is not None:
                decided, pacing = pacing.decisions, pacing.after(step.step, result.loss, curriculum)
                if pacing.decisions != decided:
                    job = replace(job, plan=compile_plan(config, pacing.decisions))
                    output.replan(job.plan, f"the loss stands still: length {pacing.length(curriculum)} from here on")
            stopping = stop.agreed()
            last = progress.step == _end(job.plan, stop_after)
            if job.valid_data is not None and _due(progress.step, config.evaluation.interval, last):
                output.evaluation(progress, validation_loss(job.engine, job.valid_data, config))
                reached = output.growth_reached()
            if stopping or reached or _due(progress.step, config.checkpoint.interval, last):
                output.note(f"saved {_save(job, progress, stability, pacing)}")
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
    return Output(job.config, job.plan, job.start, job.growth, job.engine.groups, stop_after)


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


def _save(job: Job, progress: Progress, stability: Stability, pacing: AdaptivePacing | None) -> Path:
    state = TrainingState(progress, job.plan, job.config, job.dataset, stability, job.growth, pacing)
    return save_checkpoint(job.engine, job.checkpoints, state, job.config.checkpoint.keep_last)


def _end(plan: Plan, stop_after: int | None) -> int:
    return plan.total_steps if stop_after is None else min(stop_after, plan.total_steps)


def _due(step: int, interval: int, last: bool) -> bool:
    return last or (interval > 0 and step % interval == 0)


def _train_one(job: Job, step: BatchStep, before: Stability, output: Output) -> tuple[StepResult, Stability]:
    began = time.perf_counter()
    groups = job.engine.groups
    blocks = job.train_data.read(step, groups.dp_rank, groups.dp_size)
    rate = learning_rate(job.config, job.plan, step.step, job.growth)
    with explained_out_of_memory(job.config, step, groups.rank, f"in step {step.step + 1}"):
        result = job.engine.train_step(blocks, step, rate)
        variance = variance_sqrt(job.engine)
    seconds = time.perf_counter() - began
    after = before.after(result.loss, result.grad_norm if result.applied else math.nan)
    output.step(_metrics(job, step, rate, result, seconds, before.loss_ratio(result.loss), after, variance))
    return result, after


def _metrics(
    job: Job,
    step: BatchStep,
    rate: float,
    result: StepResult,
    seconds: float,
    loss_ratio: float,
    stability: Stability,
    variance: VarianceSqrt | None,
) -> StepMetrics:
    flops = step.rows * step.seq_len * flops_per_token(job.config.model, step.seq_len)  # masked labels cost the same
    return StepMetrics(
        step=step.after.step,
        tokens=step.after.tokens,
        samples=step.after.samples,
        seq_len=step.seq_len,
        loss=result.loss,
        lr=rate,
        grad_norm=result.grad_norm,
        step_time_s=seconds,
        tokens_per_s=step.tokens / seconds,
        mfu=flops / seconds / job.peak_flops if job.peak_flops else None,
        loss_ratio=loss_ratio,
        loss_ratio_count=stability.loss_ratio_count,
        spike_score=stability.spike_score,
        variance_sqrt_l1=variance.l1 if variance else None,
        variance_sqrt_abs_max=variance.abs_max if variance else None,
        flops=plan_flops(job.config.model, job.plan, step.after.step),
        tokens_discarded=job.plan.tokens_untrained_at(step.after.step),
    )
