"""A task on a checkpoint, from the flags to the figures, in one process or in all that a launcher started."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_slw.checkpoint.inference import load_part
from megatron_slw.checkpoint.load import Checkpoint
from megatron_slw.checkpoint.resume import verify_together
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.rules import check_layout
from megatron_slw.config.schema import ParallelConfig, RunConfig, TaskConfig
from megatron_slw.data.dataset_tokenizer import dataset_tokenizer
from megatron_slw.data.tokenizer import Tokenizer
from megatron_slw.evaluation.display import report_to
from megatron_slw.evaluation.scoring import ScoredModel, score_rows
from megatron_slw.evaluation.tasks import Task, open_task
from megatron_slw.model.forward import forward_of
from megatron_slw.parallel.groups import Groups, build_groups, check_precision, init_distributed, one_process_groups
from megatron_slw.parallel.launch import Launch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Request:
    """What is asked for."""

    load: str
    """A checkpoint."""
    task: TaskConfig
    parallel: ParallelConfig = ParallelConfig()
    """The layout; what is left of the processes is data-parallel."""
    precision: str = "fp32"
    """One of DTYPES."""
    rows: int | None = None
    """Of full length that go through the model at once; None is a micro-batch in training."""
    dataset: str | None = None
    """Whose sidecar names the tokenizer; None is the checkpoint's data.path."""
    tokenizer_dir: str | None = None
    device: str | None = None
    """Of a process that no launcher started; None is cuda where there is one, else cpu."""


def evaluate(request: Request, launch: Launch) -> dict[str, Any]:
    """The figures of the task, and what was scored. Everything wrong is said before the processes meet.

    Raises:
        ConfigError: checkpoint, tokenizer, file and flags do not fit, or are damaged.
    """
    checkpoint = Checkpoint(request.load)
    config = checkpoint.config.model_copy(update={"parallel": request.parallel, "world_size": launch.world_size})
    check_layout(config.model, config.parallel, config.world_size)
    check_precision(request.precision)
    tokenizer = _tokenizer(request, checkpoint)
    task = open_task(request.task, tokenizer, config.model.seq_length)
    groups = _groups(request, launch)
    if groups.world_size > 1:
        verify_together(checkpoint, groups)
    else:
        checkpoint.verify()
    figures = _score(request, checkpoint, config, groups, task)
    return {
        "task": task.name,
        "data": Path(request.task.data).name,
        "checkpoint": checkpoint.path.name,
        "precision": request.precision,
        "step": checkpoint.progress.step,
        **figures,
    }


def _tokenizer(request: Request, checkpoint: Checkpoint) -> Tokenizer:
    """The model's own; ConfigError where it is not found or is another one."""
    config = checkpoint.config
    prefix = request.dataset or config.data.corpora[0].prefix
    tokenizer = dataset_tokenizer(prefix, request.tokenizer_dir)
    trained_with = {
        corpus.get("tokenizer_sha256") for corpus in (checkpoint.state.dataset or {}).get("corpora", [])
    } - {None}
    size = tokenizer.info.vocab_size
    if size > (config.model.vocab_size or 0) or (trained_with and tokenizer.info.sha256 not in trained_with):
        raise ConfigError(
            f"{prefix} was made with {tokenizer.info.name} of {size} ids, but {checkpoint} the model was trained with "
            f"another tokenizer, of {config.model.vocab_size}. Give --dataset with a dataset that it was trained on."
        )
    return tokenizer


def _groups(request: Request, launch: Launch) -> Groups:
    if launch.is_launched:
        if request.device is not None:
            raise ConfigError(f"--device {request.device} is for one process; a launcher's take the devices there are.")
        init_distributed(launch)
        return build_groups(request.parallel)
    device = request.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device {device} is not there: use cpu, or cuda on a machine with a GPU.") from None
    return one_process_groups(device)


def _score(
    request: Request, checkpoint: Checkpoint, config: RunConfig, groups: Groups, task: Task
) -> dict[str, float | int]:
    module = load_part(checkpoint, config, groups, DTYPES[request.precision])
    model = ScoredModel(forward_of(module, config, groups), config, groups)
    tokens = None if request.rows is None else request.rows * config.model.seq_length
    scores = score_rows(model, task.rows, tokens, report_to(sys.stderr, task.name) if groups.rank == 0 else None)
    if groups.rank == 0 and sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    return task.figures(scores)


def leave() -> None:
    """End the process groups."""
    if dist.is_initialized():
        dist.destroy_process_group()


def write_result(path: str, figures: dict[str, Any]) -> None:
    """Write the figures as a JSON file, whole or not at all, making its folder.

    Raises:
        ConfigError: it cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        raise ConfigError(f"--output {target} cannot be written: {error.strerror}.") from None
