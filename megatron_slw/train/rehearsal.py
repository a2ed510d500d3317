"""The run's largest step, once before the first: memory that does not suffice is found now, not after hours.

A length warmup begins with the smallest steps. So before anything is trained an ordinary step of the largest shape runs
with all label weights 0 and learning rate 0. It allocates what a step allocates: activations, gradients, reduction
buckets, pipeline buffers, the optimizer's temporaries. Its gradient is exactly 0 and its rate too, so the weights stay
as they are, bit for bit; moments, step count and loss scale are put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from megatron_slw.config.schema import RunConfig
from megatron_slw.data.loader import TrainLoader
from megatron_slw.slw.batching import MicroBatching, micro_batching
from megatron_slw.slw.plan import BatchStep, Plan
from megatron_slw.train import activations as act
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import read_scaler, write_scaler, zero_optimizer_state

ALLOCATION_FAILURES = ("out of memory", "can't allocate memory", "alloc_failed")
DEEPSPEED_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class OutOfMemory(RuntimeError):
    """A step does not fit into memory; one sentence with the settings that make it smaller."""


def rehearse(engine: Engine, plan: Plan, data: TrainLoader, first: int) -> None:
    """Run the largest steps of the plan from `first` on, unless `first` is one of them. Collective.

    To be called between `ensure_optimizer_state` and the loading of a checkpoint's: it leaves zeros.

    Raises:
        OutOfMemory: on a rank whose memory does not suffice.
    """
    steps = largest_steps(engine.config, plan, first, engine.groups.device.type)
    if not steps:
        return
    groups = engine.groups
    counters = {name: getattr(engine.ds, name) for name in DEEPSPEED_COUNTERS}
    scaler = read_scaler(engine)
    for step in steps:
        blocks = data.read(step, groups.dp_rank, groups.dp_size)
        nothing_counts_BT = np.zeros(blocks.labels_BT.shape, np.float32)
        what = f"at step {step.step + 1}, the largest, which was rehearsed before the first"
        with explained_out_of_memory(engine.config, step, groups.rank, what):
            engine.train_step(replace(blocks, loss_mask_BT=nothing_counts_BT), step, learning_rate=0.0)
    zero_optimizer_state(engine)  # Adam with L2 decay and SGD with momentum gather the decay even at rate 0
    if scaler is not None:
        write_scaler(engine, scaler)
    for name, value in counters.items():
        setattr(engine.ds, name, value)


def largest_steps(config: RunConfig, plan: Plan, first: int, device: str = "cpu") -> list[BatchStep]:
    """One step of each shape, from step `first` of the plan on, that may need more memory than all others.

    These are the micro-batch of most tokens, the greatest length (attention's scores grow with its square), and under
    pipelining the most tokens in flight on the first stage. Since other operators may run at other sizes on `device`
    (the fused softmax at short lengths, the loss in chunks), also the one whose layers keep the most by the estimate,
    and the one whose logits take the most. Of equals it is the one of most micro-batches, which keeps sums of
    gradients. Mostly they are one. The shape of step `first` is left out: it comes next anyway. Rows packed from
    pieces of samples are the first of their shape, so they are taken.
    """
    if first >= plan.total_steps:
        return []
    ends = [*(run.first_step for run in plan.runs[1:]), plan.total_steps]
    steps = [plan.at(max(run.first_step, first)) for run, end in zip(plan.runs, ends, strict=True) if end > first]

    if config.curriculum is not None and config.curriculum.schedule_type == "loss_adaptive":
        # The plan knows only what was decided so far. The samples of another length are read like those of truncation.
        steps.append(replace(steps[-1], seq_len=config.curriculum.max_difficulty, ledger=None))

    def shape(step: BatchStep) -> tuple[int, MicroBatching]:
        return step.seq_len, micro_batching(config, step.seq_len, step.rows)

    def parts(step: BatchStep) -> int:
        return shape(step)[1].parts

    def tokens(step: BatchStep) -> int:
        return step.seq_len * shape(step)[1].rows

    def in_flight(step: BatchStep) -> int:
        return tokens(step) * min(config.parallel.pipeline, parts(step))

    def kept(step: BatchStep) -> int:
        return sum(act.layer_table(config, shape(step)[1].rows, step.seq_len, device).values())

    def head(step: BatchStep) -> int:
        return act.head_peak(config, shape(step)[1].rows, step.seq_len, device)

    largest = (
        max(steps, key=lambda step: (tokens(step), step.seq_len, parts(step))),
        max(steps, key=lambda step: (step.seq_len, tokens(step), parts(step))),
        max(steps, key=lambda step: (in_flight(step), step.seq_len, parts(step))),
        max(steps, key=lambda step: (kept(step), step.seq_len, parts(step))),
        max(steps, key=lambda step: (head(step), step.seq_len, parts(step))),
    )
    by_shape = {shape(step): step for step in largest}
    by_shape.pop(shape(steps[0]), None)
    return list(by_shape.values())


@contextlib.contextmanager
def explained_out_of_memory(config: RunConfig, step: BatchStep, rank: int, what: str) -> Iterator[None]:
    """Turn a failed allocation in the inner block into OutOfMemory.

    Args:
        config: whose settings the sentence names.
        step: that is run.
        rank: this process.
        what: which step that is, in words.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise OutOfMemory(_sentence(config, step, rank, what, error)) from error


def _is_out_of_memory(error: Exception) -> bool:
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(text in str(error).lower() for text in ALLOCATION_FAILURES)


def _sentence(config: RunConfig, step: BatchStep, rank: int, what: str, error: Exception) -> str:
    rows = micro_batching(config, step.seq_len, step.rows).rows
    knobs = []
    if rows > config.micro_batch_size:
        knobs.append("lower training.micro_batch_tokens")
    if config.micro_batch_size > 1:
        knobs.append(f"lower train_micro_batch_size_per_gpu (now {config.micro_batch_size})")
    if not config.training.activation_checkpointing:
        knobs.append("set training.activation_checkpointing to true")
    knobs.append(f"lower model.seq_length (now {config.model.seq_length})")
    reason = ". ".join(str(error).split(". ")[:2]).strip(" .\n") or type(error).__name__
    choice = ", ".join(knobs[:-1]) + (", or " if len(knobs) > 1 else "") + knobs[-1]
    return (
        f"rank {rank} ran out of memory {what} (micro-batches of {rows} rows x {step.seq_len} tokens): {reason:.200}. "
        f"To make it fit, {choice}."
    )
