"""Who is who: the process group of each parallel dimension, built once and passed as an argument.

This file and launch.py are the only ones that touch the environment.
Ranks are laid out as DeepSpeed's pipeline wants them: pipe slowest, then data, then tensor fastest, so that the ranks
of one tensor-parallel group are neighbours on one machine.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

if not torch.cuda.is_available():  # else DeepSpeed warns at every start that it found no GPU
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed  # noqa: E402
from deepspeed.accelerator import get_accelerator  # noqa: E402
from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology  # noqa: E402

from megatron_slw.config.errors import ConfigError  # noqa: E402
from megatron_slw.config.schema import ParallelConfig  # noqa: E402
from megatron_slw.parallel.launch import Launch  # noqa: E402

COLLECTIVE_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Groups:
    """This rank's place in the tensor x pipeline x data grid, and the groups it communicates in."""

    rank: int
    world_size: int
    tp_rank: int
    tp_size: int
    pp_rank: int
    pp_size: int
    dp_rank: int
    dp_size: int
    tp_group: dist.ProcessGroup | None
    dp_group: dist.ProcessGroup | None
    mp_group: dist.ProcessGroup | None
    """Tensor x pipeline: the ranks that together hold one replica."""
    topology: PipeModelDataParallelTopology
    device: torch.device

    def __str__(self) -> str:
        return f"TP({self.tp_size})-PP({self.pp_size})-DP({self.dp_size})"


class ModelParallelUnit:
    """The `mpu` object through which DeepSpeed's plain engine asks for groups (pipeline size 1)."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    def get_model_parallel_rank(self) -> int:
        """Rank within the tensor-parallel group."""
        return self._groups.tp_rank

    def get_model_parallel_world_size(self) -> int:
        """Tensor-parallel size."""
        return self._groups.tp_size

    def get_model_parallel_group(self) -> dist.ProcessGroup | None:
        """Tensor-parallel group."""
        return self._groups.mp_group

    def get_data_parallel_rank(self) -> int:
        """Rank within the data-parallel group."""
        return self._groups.dp_rank

    def get_data_parallel_world_size(self) -> int:
        """Data-parallel size."""
        return self._groups.dp_size

    def get_data_parallel_group(self) -> dist.ProcessGroup | None:
        """Data-parallel group."""
        return self._groups.dp_group


def init_distributed(
    launch: Launch, store: Path | None = None, timeout_s: float = COLLECTIVE_TIMEOUT_S
) -> dist.Store | None:
    """Start torch.distributed and DeepSpeed's wrapper of it: nccl on GPUs, gloo on CPUs.

    Args:
        launch: what `read_launch` found.
        store: a file for the rendezvous. torch's TCPStore listens on every interface of the machine, so the tests use
            a file instead, and a single process its own memory.
        timeout_s: seconds after which a collective that a dead peer left hanging is given up.

    Returns:
        The store of the rendezvous, for messages beside the collectives; None if others had initialised before.
    """
    os.environ.setdefault("LOCAL_RANK", str(launch.local_rank))  # PipelineModule insists on reading it
    # DeepSpeed compiles a shared-memory all-reduce at its first start on a CPU (one to two minutes), which only its
    # inference calls use. Declaring it incompatible skips the build.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if torch.cuda.is_available():
        torch.cuda.set_device(launch.local_rank)
    rendezvous = None
    if not dist.is_initialized():
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        rank, world, timeout = launch.rank, launch.world_size, timedelta(seconds=timeout_s)
        if store is None and not launch.is_launched:
            rendezvous = dist.HashStore()
        else:
            method = f"file://{store}" if store is not None else "env://"
            rendezvous, _, _ = next(dist.rendezvous(method, rank, world, timeout=timeout))
        own = dist.PrefixStore("collectives", rendezvous)
        dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=timeout)
    deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    return rendezvous


def check_precision(precision: str) -> None:
    """Refuse a precision that this machine's processors do not compute in.

    Raises:
        ConfigError: fp16 on most CPUs, bf16 on old GPUs.
    """
    supported = {"fp32": True, "bf16": get_accelerator().is_bf16_supported, "fp16": get_accelerator().is_fp16_supported}
    works = supported[precision]
    if not (works() if callable(works) else works):
        other = "bf16" if precision == "fp16" else "fp16"
        raise ConfigError(
            f"{precision}.enabled is true, but {get_accelerator().device_name()} does not support {precision} here. "
            f"Use {other} where it does, or leave both out for fp32."
        )


def build_groups(parallel: ParallelConfig) -> Groups:
    """Build every process group. Collective: all ranks call it, in the same order.

    Raises:
        ConfigError: tensor x pipeline does not divide the number of processes.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    replica = parallel.tensor * parallel.pipeline
    if world % replica:
        raise ConfigError(
            f"parallel.tensor {parallel.tensor} x parallel.pipeline {parallel.pipeline} = {replica} does not divide "
            f"the {world} processes started. Start a multiple of {replica}."
        )
    topology = PipeModelDataParallelTopology(num_pp=parallel.pipeline, num_mp=parallel.tensor, num_dp=world // replica)
    here = topology.get_coord(rank)

    def own_group(rank_lists: list[list[int]]) -> dist.ProcessGroup | None:
        mine = None
        for ranks in rank_lists:
            group = dist.new_group(ranks)  # collective over the world, whoever is in `ranks`
            mine = group if rank in ranks else mine
        return mine

    alone = [[r] for r in range(world)]
    replicas = [topology.filter_match(data=d) for d in range(world // replica)]
    return Groups(
        rank=rank,
        world_size=world,
        tp_rank=here.model,
        tp_size=parallel.tensor,
        pp_rank=here.pipe,
        pp_size=parallel.pipeline,
        dp_rank=here.data,
        dp_size=world // replica,
        tp_group=own_group(topology.get_axis_comm_lists("model") or alone),
        dp_group=own_group(topology.get_axis_comm_lists("data") or alone),
        mp_group=own_group(replicas),
        topology=topology,
        device=torch.device(get_accelerator().current_device_name()),
    )


def one_process_groups(device: str = "cpu") -> Groups:
    """The grid of one process without any process group, for tools that only run the model forward."""
    topology = PipeModelDataParallelTopology(num_pp=1, num_mp=1, num_dp=1)
    return Groups(0, 1, 0, 1, 0, 1, 0, 1, None, None, None, topology, torch.device(device))
