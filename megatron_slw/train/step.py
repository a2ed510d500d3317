"""One step of the plan in the loop: trained, repeated, or left out; and what is measured of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from megatron_slw.slw.plan import BatchStep
from megatron_slw.slw.skipped import Skip, Skipped, sample_ranges
from megatron_slw.slw.spikes import SpikeWindow
from megatron_slw.slw.stability import Stability
from megatron_slw.train.engine import StepRefused, StepResult
from megatron_slw.train.estimate import flops_per_token, plan_flops
from megatron_slw.train.learning_rate import learning_rate
from megatron_slw.train.metrics import StepMetrics
from megatron_slw.train.optimizer_statistics import VarianceSqrt, variance_sqrt
from megatron_slw.train.output import Output
from megatron_slw.train.refusal import RollBack, decide
from megatron_slw.train.rehearsal import explained_out_of_memory

if TYPE_CHECKING:
    from megatron_slw.train.loop import Job


@dataclass(frozen=True)
class Measured:
    """What was seen of the training so far. The loop replaces it after each step, the checkpoint stores it."""

    stability: Stability
    spike_window: SpikeWindow
    skipped: Skipped


def pass_step(
    job: Job, step: BatchStep, measured: Measured, output: Output, settle: Callable[[], None] = lambda: None
) -> tuple[StepResult | None, Measured]:
    """Train a step, or leave it out; None for the result then. Collective.

    Raises:
        StepRefused: it must not be trained, and the run stops.
        RollBack: it must not be trained, and the run goes on from an older checkpoint.
    """
    skip = measured.skipped.at(step.step)
    if skip is None:
        began = time.perf_counter()
        try:
            result, rate = _train(job, step, measured.spike_window, output)
        except StepRefused as refusal:
            skip, checkpoint = decide(job, step, measured.skipped, refusal, settle)
            output.note(_decision(step, skip))
            if checkpoint is not None:
                raise RollBack(checkpoint) from None
            measured = replace(measured, skipped=measured.skipped.with_skip(skip))
    if skip is not None:
        output.skipped(skipped_record(job, step, skip, measured.skipped))
        return None, measured
    return result, _measured(job, step, rate, result, began, measured, output)


def _train(job: Job, step: BatchStep, window: SpikeWindow, output: Output) -> tuple[StepResult, float]:
    training = job.config.training
    try:
        return _attempt(job, step, window)
    except StepRefused as refusal:
        if not training.rerun:
            raise
        first = refusal
    where = f"step {step.step + 1}: {first.reason}"
    try:
        found = _attempt(job, step, window)
    except StepRefused as second:
        same = (first.loss, first.grad_norm) == (second.loss, second.grad_norm)
        again = "the same again" if same or first.reason == second.reason else f"then {second.reason}"
        output.note(f"{where}. Repeated, {again}: a lasting fault, of the data, the model or its rates.")
        raise
    output.note(
        f"warning: {where}. Repeated, it gave loss {found[0].loss:.4f}, gradient norm {found[0].grad_norm:.2f}: a "
        "passing fault of the machine. Training goes on with that."
    )
    return found


def _attempt(job: Job, step: BatchStep, window: SpikeWindow) -> tuple[StepResult, float]:
    groups, training = job.engine.groups, job.config.training
    blocks = job.train_data.read(step, groups.dp_rank, groups.dp_size)
    rate = learning_rate(job.config, job.plan, step.step, job.growth)

    def judge(loss: float, grad_norm: float | None) -> str | None:
        return window.judge(training.spike_sigmas, step.seq_len, loss, grad_norm)

    with explained_out_of_memory(job.config, step, groups.rank, f"in step {step.step + 1}"):
        judged = judge if training.on_spike is not None else None
        return job.engine.train_step(blocks, step, rate, judged), rate


def _measured(
    job: Job, step: BatchStep, rate: float, result: StepResult, began: float, before: Measured, output: Output
) -> Measured:
    norm = result.grad_norm if result.applied else math.nan
    after = replace(
        before,
        stability=before.stability.after(result.loss, norm),
        spike_window=before.spike_window.after(step.seq_len, result.loss, norm),
    )
    variance = variance_sqrt(job.engine)
    seconds = time.perf_counter() - began
    ratio = before.stability.loss_ratio(result.loss)
    output.step(_metrics(job, step, rate, result, seconds, ratio, after, variance))
    return after


def _metrics(
    job: Job,
    step: BatchStep,
    rate: float,
    result: StepResult,
    seconds: float,
    loss_ratio: float,
    after: Measured,
    variance: VarianceSqrt | None,
) -> StepMetrics:
    flops = step.rows * step.seq_len * flops_per_token(job.config.model, step.seq_len)  # masked labels cost the same
    trained = after.skipped.trained(job.plan, step.after)
    return StepMetrics(
        step=trained.step,
        tokens=trained.tokens,
        samples=trained.samples,
        seq_len=step.seq_len,
        loss=result.loss,
        lr=rate,
        grad_norm=result.grad_norm,
        step_time_s=seconds,
        tokens_per_s=step.tokens / seconds,
        mfu=flops / seconds / job.peak_flops if job.peak_flops else None,
        loss_ratio=loss_ratio,
        loss_ratio_count=after.stability.loss_ratio_count,
        spike_score=after.stability.spike_score,
        variance_sqrt_l1=variance.l1 if variance else None,
        variance_sqrt_abs_max=variance.abs_max if variance else None,
        flops=_flops_trained(job, after.skipped, step.after.step),
        tokens_discarded=job.plan.tokens_untrained_at(step.after.step) + step.after.tokens - trained.tokens,
    )


def _flops_trained(job: Job, skipped: Skipped, steps: int) -> int:
    model, plan = job.config.model, job.plan
    lost = (plan_flops(model, plan, b) - plan_flops(model, plan, a) for a, b in skipped.stretches(steps))
    return plan_flops(model, plan, steps) - sum(lost)


def skipped_record(job: Job, step: BatchStep, skip: Skip, skipped: Skipped) -> dict[str, Any]:
    """The line of metrics.jsonl for a step that is left out: no clock stands still, no label is counted."""
    refused = step.step == skip.step
    return {
        "event": "skipped",
        "step": step.after.step,
        "tokens": skipped.trained(job.plan, step.after).tokens,
        "samples": step.after.samples,
        "seq_len": step.seq_len,
        "tokens_skipped": step.tokens,
        "sample_ids": sample_ranges(step),
        "fault_step": skip.step + 1,
        "reason": skip.reason,
        "back_to": skip.back_to,
        "loss": skip.loss if refused else None,
        "grad_norm": skip.grad_norm if refused else None,
    }


def _decision(step: BatchStep, skip: Skip) -> str:
    said = f"warning: step {step.step + 1}: {skip.reason}."
    if skip.back_to is None:
        ids = sample_ranges(step)
        samples = ", ".join(f"{first} to {stop - 1}" for first, stop in ids[:8]) + (", ..." if len(ids) > 8 else "")
        return f"{said} It was left out (samples {samples})."
    return f"{said} Back to step {skip.back_to}, leaving out steps {skip.first + 1} to {skip.stop}."
