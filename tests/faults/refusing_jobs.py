"""What the tests of disks that refuse run on each rank."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from pathlib import Path

from megatron_slw.checkpoint.rank_files import write_tensors
from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.config.schema import RunConfig
from megatron_slw.parallel.groups import build_groups
from megatron_slw.train.job import build_job
from megatron_slw.train.loop import train
from tests.checkpoint.jobs import writing_by
from tests.faults.killing import counted, failing


def refused(config: RunConfig, rank: int, call: int | None, code: int) -> str:
    """Train; file-system call `call` of one rank's saves is refused. What the run says."""
    job = build_job(config, build_groups(config.parallel))
    mine = call if job.engine.groups.rank == rank else None
    with counted(mine, failing(code), under=job.checkpoints):
        try:
            train(job)
        except SaveError as error:
            return str(error)
    return "trained"


def vanished(config: RunConfig) -> str:
    """Train; the checkpoint directory is deleted while the second save is written."""
    job = build_job(config, build_groups(config.parallel))
    saves: list[int] = []

    def write(path: Path, tensors: object) -> object:
        saves.append(1)
        if len(saves) == 2:
            shutil.rmtree(job.checkpoints)
        return write_tensors(path, tensors)  # type: ignore[arg-type]

    with writing_by(write):
        try:
            train(job)
        except SaveError as error:
            return str(error)
    return "trained"


def fill_and_free(config: RunConfig, disk: Path) -> str:
    """Train; `disk` is full from the first save to the twelfth. What the run printed."""
    job = build_job(config, build_groups(config.parallel))
    ballast, saves, printed = disk / "ballast", [], io.StringIO()

    def write(path: Path, tensors: object) -> object:
        saves.append(path)
        if len(saves) == 1:
            _fill(ballast)
        elif len(saves) == 12:
            ballast.unlink()
        return write_tensors(path, tensors)  # type: ignore[arg-type]

    with writing_by(write), contextlib.redirect_stdout(printed):
        train(job)
    return printed.getvalue()


def _fill(path: Path) -> None:
    """Write until the file system takes nothing more."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            try:
                while True:
                    file.write(os.urandom(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
