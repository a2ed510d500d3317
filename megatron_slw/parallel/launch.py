"""What the launcher (deepspeed, torchrun, mpirun, Slurm) says of this process, without loading torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from megatron_slw.config.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """What the launcher says of this process."""

    rank: int
    world_size: int
    local_rank: int
    is_launched: bool


def read_launch() -> Launch:
    """Rank and world size from the environment of deepspeed, torchrun, mpirun or Slurm; one process without any.

    Raises:
        ConfigError: where the variables contradict each other.
    """
    env = os.environ
    for rank_key, size_key, local_key in (
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
    ):
        if rank_key in env and size_key in env:
            rank, world = int(env[rank_key]), int(env[size_key])
            if not 0 <= rank < world:
                raise ConfigError(f"{rank_key}={rank} is not below {size_key}={world}. Start the job by a launcher.")
            return Launch(rank, world, int(env.get(local_key, "0")), is_launched=True)
    return Launch(0, 1, 0, is_launched=False)
