"""A checkpoint of any layout as a plain model in one process, for evaluation and generation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.schema import ParallelConfig, RunConfig
from megatron_slw.model.gpt import GPT
from megatron_slw.parallel.groups import one_process_groups
from megatron_slw.parallel.sharding import sharded_parameters
from megatron_slw.progress import Progress


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for forward passes, and where it comes from."""

    model: GPT
    config: RunConfig
    progress: Progress
    checkpoint: Checkpoint


def load_model(directory: str | Path, device: str = "cpu", verify: bool = True) -> LoadedModel:
    """The fp32 model of a checkpoint, dropout off.

    Args:
        directory: a checkpoint (`.../step_000400`).
        device: where the model goes.
        verify: compare every file with its SHA-256 first.

    Raises:
        ConfigError: the checkpoint is incomplete or damaged.
    """
    checkpoint = Checkpoint(directory)
    if verify:
        checkpoint.verify()
    config = checkpoint.config.model_copy(update={"parallel": ParallelConfig()})
    model = GPT(config, one_process_groups(device))
    with torch.no_grad():
        for shard, param in sharded_parameters(model):
            param.copy_(checkpoint.tensor(f"weight/{shard.name}", shard))
    return LoadedModel(model.to(device).eval(), checkpoint.config, checkpoint.progress, checkpoint)
