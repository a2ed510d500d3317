"""What the tests of the optimizer statistics run on each rank."""

from __future__ import annotations

from typing import Any

import torch
from deepspeed.utils import safe_get_local_optimizer_state

from megatron_slw.checkpoint.format import step_folder
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.slw.stability import Stability
from megatron_slw.train import optimizer_statistics
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import ensure_optimizer_state, read_tensor
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import train
from megatron_slw.train.optimizer_statistics import SECOND_MOMENT, variance_sqrt
from tests.parity.runs import Pieces
from tests.train.engine_jobs import make_engine, train_to


def measured_and_whole(config: RunConfig, steps: int) -> tuple[Any, Pieces]:
    """Train, then measure; the statistics, and this rank's blocks of the second moment as a save assembles them."""
    engine = make_engine(config)
    ensure_optimizer_state(engine)
    train_to(engine, 0, steps)
    pieces = [
        (shard, read_tensor(engine, param, SECOND_MOMENT).detach().float().numpy().reshape(shard.local_shape).copy())
        for shard, param in sharded_parameters(engine.ds.module)
    ]
    if config.zero_stage:
        _fill_padding(engine)
    optimizer_statistics.CHUNK, kept = {"cpu": 1000}, optimizer_statistics.CHUNK  # else one rank has it all
    try:
        return variance_sqrt(engine), pieces
    finally:
        optimizer_statistics.CHUNK = kept


def measured_and_whole_fp16(config: RunConfig, steps: int) -> tuple[Any, Pieces]:
    """The same in fp16, which DeepSpeed refuses on CPUs without fp16 instructions although torch computes it."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    original, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda: True
    try:
        return measured_and_whole(config, steps)
    finally:
        accelerator.is_fp16_supported = original


def measured_by_a_run_fp16(config: RunConfig) -> tuple[Stability, int]:
    """A run of the trainer in fp16; what its last checkpoint says was measured, and the updates it made."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    original, accelerator.is_fp16_supported = accelerator.is_fp16_supported, lambda: True
    try:
        built = build_job(config, build_groups(config.parallel))
        train(built)
        checkpoint = Checkpoint(step_folder(built.checkpoints, built.plan.total_steps))
        return checkpoint.stability, checkpoint.optimizer_steps or 0
    finally:
        accelerator.is_fp16_supported = original


def _fill_padding(engine: Engine) -> None:
    """Put a large number wherever ZeRO's flat partitions hold no parameter: DeepSpeed happens to leave zeros there."""
    dp_rank = engine.groups.dp_rank
    if engine.config.zero_stage == 3:
        for _, param in sharded_parameters(engine.ds.module):
            size = param.ds_tensor.numel()
            real = max(0, min(size, param.ds_numel - dp_rank * size))
            safe_get_local_optimizer_state(param, SECOND_MOMENT)[real:] = 1e6
        return
    for group in engine.torch_optimizer.param_groups:
        for flat in group["params"]:
            moment = engine.torch_optimizer.state[flat][SECOND_MOMENT]
            used = torch.zeros(flat.numel(), dtype=torch.bool)
            for _, param in sharded_parameters(engine.ds.module):
                mapping = param._hp_mapping
                if mapping is not None and mapping.hp_fragment.untyped_storage().data_ptr() == (
                    flat.untyped_storage().data_ptr()
                ):
                    address = mapping.get_hp_fragment_address()
                    used[address.start : address.start + address.numel] = True
            moment[~used] = 1e6
