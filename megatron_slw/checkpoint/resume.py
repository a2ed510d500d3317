"""Bring a checkpoint's training state into an engine of any layout."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import ModelConfig
from megatron_slw.parallel.groups import Groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.slw.plan import Plan
from megatron_slw.train.engine import Engine
from megatron_slw.train.engine_state import (
    WEIGHT,
    ensure_optimizer_state,
    tensor_kinds,
    write_scaler,
    write_tensor,
    write_weight,
)


def verify_together(checkpoint: Checkpoint, groups: Groups) -> None:
    """Check every file's SHA-256, the work shared by the ranks; ConfigError on all of them if one file is bad."""
    error = None
    try:
        checkpoint.verify(groups.rank, groups.world_size)
    except ConfigError as found:
        error = found
    failed = torch.tensor([groups.rank if error else groups.world_size], device=groups.device)
    dist.all_reduce(failed, op=dist.ReduceOp.MIN)
    if error is not None:
        raise error
    if int(failed) < groups.world_size:
        raise ConfigError(f"{checkpoint} a file does not match its SHA-256; rank {int(failed)} names it.")


def check_model(checkpoint: Checkpoint, model: ModelConfig) -> None:
    """A resume must be of the same model in what the tensors' shapes do not tell.

    Raises:
        ConfigError: naming the setting; a grown checkpoint may have another layernorm_epsilon than its source.
    """
    for name in ("num_attention_heads", "activation", "layernorm_epsilon"):
        before, now = getattr(checkpoint.config.model, name), getattr(model, name)
        if before != now:
            raise ConfigError(
                f"{checkpoint} its model.{name} is {before}, but this configuration has {now}. Set it to {before}."
            )


def check_plan(checkpoint: Checkpoint, plan: Plan) -> None:
    """A resume must stand in the plan where the checkpoint stood: same steps, samples and tokens.

    Raises:
        ConfigError: batch size or schedule were changed for steps already trained.
    """
    saved = checkpoint.progress
    if saved.step > plan.total_steps:
        raise ConfigError(
            f"{checkpoint} it has trained {saved.step} steps, but this run ends after {plan.total_steps}. Raise "
            "training.train_steps or training.train_tokens."
        )
    ours = plan.progress_at(saved.step)
    if ours != saved:
        raise ConfigError(
            f"{checkpoint} it trained {saved.samples} samples and {saved.tokens} tokens in {saved.step} steps, but "
            f"this configuration's plan has {ours.samples} and {ours.tokens} there. Keep the batch size and the "
            "schedule of the steps already trained, or start in a new logging.directory."
        )


def restore(engine: Engine, checkpoint: Checkpoint) -> None:
    """Put an engine that has trained back to a checkpoint: weights, masters, moments, step, loss scale. Collective."""
    ensure_optimizer_state(engine, checkpoint.optimizer_steps)
    for shard, param in sharded_parameters(engine.ds.module):
        for kind in tensor_kinds(engine):
            value = checkpoint.tensor(f"{kind}/{shard.name}", shard).to(engine.groups.device)
            if kind == WEIGHT:
                write_weight(engine, param, value)
            write_tensor(engine, param, kind, value)
    if checkpoint.loss_scaler is not None and engine.config.precision == "fp16":
        write_scaler(engine, checkpoint.loss_scaler)


def load_optimizer_state(engine: Engine, checkpoint: Checkpoint) -> None:
    """Set fp32 masters, moments, the optimizer's step and the loss scale. The weights were filled by `Engine`."""
    ensure_optimizer_state(engine, checkpoint.optimizer_steps)
    for shard, param in sharded_parameters(engine.ds.module):
        for kind in tensor_kinds(engine):
            if kind == WEIGHT and engine.config.precision == "fp32":
                continue  # the weights are the masters
            value = checkpoint.tensor(f"{kind}/{shard.name}", shard).to(engine.groups.device)
            write_tensor(engine, param, kind, value)
    if checkpoint.loss_scaler is not None and engine.config.precision == "fp16":
        write_scaler(engine, checkpoint.loss_scaler)
