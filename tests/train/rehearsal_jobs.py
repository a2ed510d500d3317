"""What the tests of the rehearsal run on each rank."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np

from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.train import job
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import optimizer_steps, read_scaler
from megatron_slw.train.learning_rate import learning_rate
from megatron_slw.train.optimizer_statistics import variance_sqrt
from tests.checkpoint.jobs import state_of
from tests.train.memory_job import LiveBytes

Call = tuple[int, int, float, float | None, float]
"""Step, length, learning rate, sum of the loss mask, loss."""


def train(config: RunConfig, until: int, rehearsed: bool) -> tuple[list[Call], dict[str, Any], dict[str, Any]]:
    """Build a job and train it to step `until`; every call of train_step, and the state before the first and after."""
    calls: list[Call] = []
    train_step, rehearse = Engine.train_step, job.rehearse

    def recorded(engine: Engine, blocks: Any, step: Any, learning_rate: float) -> Any:
        result = train_step(engine, blocks, step, learning_rate)
        mask = None if blocks.loss_mask_BT is None else float(blocks.loss_mask_BT.sum())
        calls.append((step.step, blocks.tokens_BT.shape[1], learning_rate, mask, result.loss))
        return result

    Engine.train_step = recorded  # type: ignore[method-assign]
    if not rehearsed:
        job.rehearse = lambda *_: None
    try:
        built = job.build_job(config, build_groups(config.parallel))
        before = _everything(built)
        for number in range(built.start.step, until):
            step, groups = built.plan.at(number), built.engine.groups
            blocks = built.train_data.read(step, groups.dp_rank, groups.dp_size)
            built.engine.train_step(blocks, step, learning_rate(built.config, built.plan, number))
        return calls, before, _everything(built)
    finally:
        Engine.train_step, job.rehearse = train_step, rehearse  # type: ignore[method-assign]


def train_fp16(config: RunConfig, until: int, rehearsed: bool) -> tuple[list[Call], dict[str, Any], dict[str, Any]]:
    """`train` in fp16, which DeepSpeed refuses on CPUs without fp16 instructions although torch computes it."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    original, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda: True
    try:
        return train(config, until, rehearsed)
    finally:
        accelerator.is_fp16_supported = original


def peaks(config: RunConfig) -> tuple[int, int, int]:
    """Bytes of tensors at their peak in the first step, in the rehearsal, and in all steps, on this rank."""
    rehearse, found = job.rehearse, []

    def measured(*args: Any) -> None:
        gc.collect()
        live.peak = live.now
        rehearse(*args)
        found.append(live.peak)

    job.rehearse = measured
    try:
        with LiveBytes() as live:
            built = job.build_job(config, build_groups(config.parallel))
            for number in range(built.plan.total_steps):
                gc.collect()
                live.peak = live.now
                step, groups = built.plan.at(number), built.engine.groups
                blocks = built.train_data.read(step, groups.dp_rank, groups.dp_size)
                built.engine.train_step(blocks, step, 1e-3)
                variance_sqrt(built.engine)
                found.append(live.peak)
        return found[1], found[0], max(found[1:])
    finally:
        job.rehearse = rehearse


def _everything(built: job.Job) -> dict[str, Any]:
    """fp32 state, the weights in training precision, and every count."""
    engine = built.engine
    state: dict[str, Any] = dict(state_of(built))
    for shard, param in sharded_parameters(engine.ds.module):
        local = param.ds_tensor if engine.config.zero_stage == 3 else param
        state[f"local/{shard.name}"] = local.detach().float().numpy().copy()
    state["steps"] = np.array([optimizer_steps(engine) or 0, engine.ds.global_steps, engine.ds.skipped_steps])
    state["scaler"] = np.array(list((read_scaler(engine) or {}).values()))
    return state
