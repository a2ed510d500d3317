"""The processes that mpirun started, as workers of the first one.

The first rank reads, saves its place and writes; all others encode. So the bytes are those of one machine, a run may
go on with another number of ranks, and nobody but the first needs to see the files.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from megatron_slw.config.errors import ConfigError


@contextmanager
def mpi_workers(world_size: int) -> Iterator[tuple[bool, Executor | None]]:
    """Yield (whether this process is the one that writes, the executor for its work); others work until it is done.

    Args:
        world_size: processes the launcher says it started. With one, there is no executor and MPI is not started.

    Raises:
        ConfigError: mpi4py is missing, or its MPI is not that of the launcher.
    """
    if world_size < 2:
        yield True, None
        return
    if find_spec("mpi4py") is None:
        raise ConfigError(f"{world_size} processes were started, but mpi4py is not installed: pip install mpi4py.")
    from mpi4py import MPI
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.size != world_size:
        raise ConfigError(
            f"{world_size} processes were started, but mpi4py sees {MPI.COMM_WORLD.size}: it uses another MPI than "
            "this mpirun. Install mpi4py with the MPI of the launcher."
        )
    ranks: Any = MPICommExecutor(MPI.COMM_WORLD, root=0)  # its type stubs leave out that it gives an Executor
    with ranks as executor:
        yield executor is not None, executor
