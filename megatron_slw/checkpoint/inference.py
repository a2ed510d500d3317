"""A checkpoint of any layout as a model for forward passes alone, in one process or in many."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.config.schema import ParallelConfig, RunConfig
from megatron_slw.model.gpt import GPT
from megatron_slw.model.pipeline import build_pipeline
from megatron_slw.parallel.groups import Groups, one_process_groups
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
    model = load_part(checkpoint, config, one_process_groups(device))
    if not isinstance(model, GPT):
        raise TypeError(f"one process holds a whole GPT, not {type(model).__name__}")
    return LoadedModel(model, checkpoint.config, checkpoint.progress, checkpoint)


def load_part(
    checkpoint: Checkpoint, config: RunConfig, groups: Groups, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """This rank's part of a checkpoint's model, dropout off: a `GPT`, or one stage of it. Collective.

    Args:
        checkpoint: of any layout.
        config: the checkpoint's, with the layout that is wanted in `parallel`.
        groups: of that layout.
        dtype: of the weights.

    Raises:
        ConfigError: a tensor is missing or of another shape.
    """
    with contextlib.redirect_stdout(io.StringIO()):  # PipelineModule prints its partition
        model = build_pipeline(config, groups) if groups.pp_size > 1 else GPT(config, groups)
    with torch.no_grad():
        for shard, param in sharded_parameters(model):
            param.copy_(checkpoint.tensor(f"weight/{shard.name}", shard))
    return model.to(groups.device, dtype).eval()
