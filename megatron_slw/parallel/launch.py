"""What the launcher (deepspeed, torchrun, mpirun, Slurm) says of this process, without loading torch."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from megatron_slw.config.errors import ConfigError

ADDRESS, PORT = "MASTER_ADDR", "MASTER_PORT"


@dataclass(frozen=True)
class Launch:
    """What the launcher says of this process."""

    rank: int
    world_size: int
    local_rank: int
    is_launched: bool
    by_mpi: bool = False
    """By mpirun, which says nothing of where the ranks meet."""


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
            rank, world, local = (_number(key) for key in (rank_key, size_key, local_key))
            if not 0 <= rank < world:
                raise ConfigError(f"{rank_key}={rank} is not below {size_key}={world}. Start the job by a launcher.")
            return Launch(rank, world, local, is_launched=True, by_mpi=rank_key != "RANK")
    return Launch(0, 1, 0, is_launched=False)


def _number(key: str) -> int:
    text = os.environ.get(key, "0")
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{key}={text!r:.40} is not a number. Start the job by a launcher.")
    return int(text)


def agree_where_to_meet(launch: Launch) -> None:
    """See to it that MASTER_ADDR and MASTER_PORT are set: the ranks of mpirun agree on them through mpi4py.

    MPI is ended again at once: what trains speaks nccl or gloo.

    Raises:
        ConfigError: they are not set and cannot be agreed on.
    """
    if not launch.is_launched or (ADDRESS in os.environ and PORT in os.environ):
        return
    if not launch.by_mpi:
        raise ConfigError(
            f"this is rank {launch.rank} of {launch.world_size}, but {ADDRESS} or {PORT} is not set. Export the first "
            "machine's name and a free port of it."
        )
    if find_spec("mpi4py") is None:
        raise ConfigError(
            f"the ranks of mpirun meet through mpi4py, which is not installed: pip install mpi4py, or export {ADDRESS} "
            f"and {PORT}."
        )
    os.environ[ADDRESS], os.environ[PORT] = _agree_by_mpi(launch)


def _agree_by_mpi(launch: Launch) -> tuple[str, str]:
    """The first rank's machine and a port that is free there; collective."""
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    MPI.Init()
    try:
        comm = MPI.COMM_WORLD
        if comm.size != launch.world_size:
            raise ConfigError(
                f"{launch.world_size} processes were started, but mpi4py sees {comm.size}: it uses another MPI than "
                f"this mpirun. Install mpi4py with the MPI of the launcher, or export {ADDRESS} and {PORT}."
            )
        machines = comm.allgather(socket.gethostname())
        address = "127.0.0.1" if len(set(machines)) == 1 else machines[0]
        with socket.socket() as free:
            free.bind((address if launch.rank == 0 else "127.0.0.1", 0))
            return address, str(comm.bcast(free.getsockname()[1]))
    finally:
        MPI.Finalize()


def check_restartable() -> None:
    """A rank can be started again by its parent where the ranks can then meet again.

    Raises:
        ConfigError: torchrun restarts ranks itself; MPI does not start twice in what one mpirun began.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ConfigError("--max-restarts is torchrun's own flag here: give it before pretrain_gpt.py.")
    if read_launch().by_mpi and not (ADDRESS in os.environ and PORT in os.environ):
        raise ConfigError(f"--max-restarts needs {ADDRESS} and {PORT} under mpirun. Export them.")


def restart_environment(attempt: int) -> dict[str, str]:
    """The environment of a rank's n-th restart: a rendezvous of its own.

    At the port of the attempt before, a rank that is early would meet a rank 0 which is about to end.
    """
    env = dict(os.environ)
    if PORT in env:
        env[PORT] = str(_number(PORT) + attempt)
    return env
