"""What the killed processes run; imported by the fork server, which must run nothing."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups, init_distributed
from megatron_slw.parallel.launch import Launch
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import train
from tests.faults.killing import counted, kill

LOST_PEER = 3
"""Exit code of a rank that found another gone."""


def trained(
    rank: int, world: int, store: Path, config: RunConfig, kill_at: int | None = None, report: str = ""
) -> None:
    """One rank of a run; dies before file-system call `kill_at` of the training, or says how many there were."""
    torch.set_num_threads(1)
    quiet()
    try:
        init_distributed(Launch(rank, world, rank, is_launched=True), store=store, timeout_s=60)
        job = build_job(config, build_groups(config.parallel))
        with counted(kill_at, kill, under=job.checkpoints) as calls:
            train(job)
    except (RuntimeError, SaveError):
        os._exit(LOST_PEER)
    if report:
        Path(report).write_text(str(calls[0]))
    os._exit(0)


def tool(rank: int, world: int, store: Path, name: str, argv: list[str], under: str, kill_at: int | None) -> None:
    """A command of tools/, which dies before file-system call `kill_at` below the folder `under`."""
    torch.set_num_threads(1)
    quiet()
    with counted(kill_at, kill, under=Path(under)):
        status = importlib.import_module(f"tools.{name}").main(argv)
    os._exit(status)


def deepspeed_save(rank: int, world: int, store: Path, folder: str) -> None:
    """DeepSpeed's own save, in which rank 1 is slow: it dies as soon as `latest` names the checkpoint."""
    engine = deepspeed_engine(rank, world, store)
    if rank == 1:
        engine.checkpoint_engine.save = lambda *_: wait_and_die(Path(folder) / "latest")
    with contextlib.suppress(RuntimeError):
        engine.save_checkpoint(folder, tag="step_2")
    os._exit(LOST_PEER)


def deepspeed_load(rank: int, world: int, store: Path, folder: str, report: str) -> None:
    """What DeepSpeed's own load says of it."""
    engine = deepspeed_engine(rank, world, store)
    try:
        path, _ = engine.load_checkpoint(folder)
        said = "nothing was loaded" if path is None else "loaded"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    Path(f"{report}.{rank}").write_text(json.dumps(said))
    os._exit(0)


def deepspeed_engine(rank: int, world: int, store: Path) -> Any:
    torch.set_num_threads(1)
    quiet()
    init_distributed(Launch(rank, world, rank, is_launched=True), store=store, timeout_s=60)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    model = torch.nn.Linear(8, 8)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=settings)
    for _ in range(2):
        engine.backward(engine(torch.ones(1, 8)).sum())
        engine.step()
    return engine


def wait_and_die(path: Path) -> None:
    while not path.exists() or not path.read_text():
        os.sched_yield()
    os.kill(os.getpid(), signal.SIGKILL)


def quiet() -> None:
    """Nothing of a process that dies is of interest."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of its short life


