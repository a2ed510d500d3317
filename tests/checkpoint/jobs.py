"""What the checkpoint tests run on each rank."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megatron_slw.checkpoint import rank_files
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.save import save_checkpoint
from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.checkpoint.state import TrainingState
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.progress import Progress
from megatron_slw.train.engine_state import read_tensor, tensor_kinds
from megatron_slw.train.job import build_job
from megatron_slw.train.learning_rate import learning_rate
from megatron_slw.train.loop import Job

State = dict[str, np.ndarray]


def state_of(job: Job) -> State:
    """Every fp32 tensor of this rank's training state."""
    state = {}
    for shard, param in sharded_parameters(job.engine.ds.module):
        for kind in tensor_kinds(job.engine):
            value = read_tensor(job.engine, param, kind)
            state[f"{kind}/{shard.name}/{shard.start}"] = value.detach().cpu().float().numpy().copy()
    return state


def saved_state(job: Job, progress: Progress) -> TrainingState:
    """What is saved with the tensors."""
    return TrainingState(progress, job.plan, job.config, job.dataset, growth=job.growth)


def run(config: RunConfig, until: int, save_at: tuple[int, ...] = ()) -> dict[str, Any]:
    """Train from wherever the run directory stands to step `until`; save after the steps `save_at`.

    Returns:
        Losses by step, the tokens read and a random number drawn at each step, and the final state.
    """
    job = build_job(config, build_groups(config.parallel))
    groups, progress = job.engine.groups, job.start
    losses, tokens, draws = {}, {}, {}
    restored = state_of(job) if progress.step else {}
    for number in range(progress.step, until):
        step = job.plan.at(number)
        blocks = job.train_data.read(step, groups.dp_rank, groups.dp_size)
        result = job.engine.train_step(blocks, step, learning_rate(job.config, job.plan, number, job.growth))
        losses[number], tokens[number] = result.loss, blocks.tokens_BT.copy()
        draws[number] = float(torch.rand(()))
        progress = step.after
        if progress.step in save_at:
            save_checkpoint(job.engine, job.checkpoints, saved_state(job, progress), 10)
    return {
        "losses": losses,
        "tokens": tokens,
        "draws": draws,
        "state": state_of(job),
        "restored": restored,
        "start": job.start,
        "dp_rank": groups.dp_rank,
    }


def run_fp16(config: RunConfig, until: int, save_at: tuple[int, ...] = ()) -> dict[str, Any]:
    """`run` in fp16, which DeepSpeed refuses on CPUs without fp16 instructions although torch computes it."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    original, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda: True
    try:
        return run(config, until, save_at)
    finally:
        accelerator.is_fp16_supported = original


def save_fails_on_one_rank(config: RunConfig, broken_rank: int) -> str:
    """Save once with a rank that cannot write its file; what the save says."""
    job = build_job(config, build_groups(config.parallel))
    with full_disk(job.engine.groups.rank == broken_rank):
        try:
            save_checkpoint(job.engine, job.checkpoints, saved_state(job, Progress(1, 8, 64)), 2)
        except SaveError as error:
            return str(error)
    return "saved"


@contextlib.contextmanager
def writing_by(function: Callable[..., Any]) -> Iterator[None]:
    """Tensors are written by `function` in place of write_tensors."""
    original, rank_files.write_tensors = rank_files.write_tensors, function
    try:
        yield
    finally:
        rank_files.write_tensors = original


@contextlib.contextmanager
def full_disk(is_full: bool = True) -> Iterator[None]:
    """No tensor can be written."""

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with writing_by(refuse) if is_full else contextlib.nullcontext():
        yield


def read_logical(path: Path) -> State:
    """Every logical tensor of a checkpoint."""
    checkpoint = Checkpoint(path)
    checkpoint.verify()
    return {key: checkpoint.tensor(key).numpy() for key in checkpoint.blocks}


def unlike(saved: State, restored: State) -> list[str]:
    """Keys of a rank's restored tensors that are not, bit for bit, its part of the logical ones in a checkpoint."""
    found = []
    for key, value in restored.items():
        kind, name, start = key.split("/")
        logical = saved[f"{kind}/{name}"]
        dim = next((d for d, (a, b) in enumerate(zip(logical.shape, value.shape, strict=True)) if a != b), None)
        if dim is not None:
            logical = np.take(logical, range(int(start), int(start) + value.shape[dim]), dim)
        if not np.array_equal(logical, value):
            found.append(key)
    return found
