"""Faults at the N-th file-system call of a program: kill -9 in a forked process, or an error in this one.

A process is forked from a server that has imported torch and DeepSpeed and run nothing, so a kill costs no import.
"""

from __future__ import annotations

import contextlib
import multiprocessing as mp
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

CALLS = ("open", "write", "fsync", "rename", "replace", "link", "unlink", "rmdir", "mkdir", "ftruncate")
"""Of `os`; pathlib, shutil and tempfile reach the file system through them."""
Fault = Callable[[], None]
Pieces = tuple[Any, ...]


@contextlib.contextmanager
def counted(fault_at: int | None = None, fault: Fault = lambda: None, under: Path | None = None) -> Iterator[list[int]]:
    """Count the calls; before number `fault_at` (from 0) `fault` happens, in a write after half of the piece.

    Args:
        fault_at: None for no fault.
        fault: raises or kills.
        under: count only calls that name a path below it, and those of a handle (write, fsync).
    """
    count = [0]
    originals = {name: getattr(os, name) for name in CALLS}

    def wrapped(name: str) -> Callable[..., Any]:
        original = originals[name]

        def call(*args: Any, **keywords: Any) -> Any:
            path = args[0] if args else None
            if under is not None and isinstance(path, str | os.PathLike) and str(under) not in str(path):
                return original(*args, **keywords)
            number = count[0]
            count[0] += 1
            if number == fault_at:
                if name == "write":
                    original(args[0], args[1][: len(args[1]) // 2])
                fault()
            return original(*args, **keywords)

        return call

    for name in CALLS:
        setattr(os, name, wrapped(name))
    try:
        yield count
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def failing(errno: int) -> Fault:
    """Raise this error of the operating system."""

    def fault() -> None:
        raise OSError(errno, os.strerror(errno), "the file")

    return fault


class Forks:
    """Starts ranks of a job as forks of a clean process; the ranks of one job meet over a file."""

    def __init__(self) -> None:
        self._context = mp.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.faults.kill_jobs"])

    def run(self, fn: Callable[..., Any], args: Sequence[Pieces], timeout_s: float = 240.0) -> list[int | None]:
        """Run `fn(rank, world, store, *args[rank])` for each rank; exit codes, -9 for a killed one."""
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "store"
            ranks = [
                self._context.Process(target=fn, args=(rank, len(args), store, *own)) for rank, own in enumerate(args)
            ]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join(timeout_s)
            codes = [process.exitcode for process in ranks]
            for process in ranks:
                if process.is_alive():
                    process.kill()
                    process.join()
        assert None not in codes, f"a rank waits for ever: {codes}"
        return codes
