"""skipped.json beside the checkpoints: what a run decided to leave out, written before it goes on.

A checkpoint has the same record, but only from the next save on. A run that is killed before that resumes from an older
checkpoint, and must take the same data as if it had not been killed. Delete the file to train those steps after all.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist

from megatron_slw.checkpoint import format as layout
from megatron_slw.checkpoint.save_error import SaveError
from megatron_slw.config.errors import ConfigError
from megatron_slw.config.json_file import read_json
from megatron_slw.parallel.groups import Groups
from megatron_slw.slw.skipped import Skipped

NAME = "skipped.json"
FORMAT = "megatron_slw.skipped"


def read_journal(directory: Path) -> Skipped:
    """What the run of a checkpoint directory decided so far; nothing where it has no such file.

    Raises:
        ConfigError: the file is damaged.
    """
    path = directory / NAME
    if not path.exists():
        return Skipped()
    try:
        content = read_json(path, max_bytes=layout.MAX_JSON_BYTES)
        if set(content) != {"format", "skipped"} or content["format"] != FORMAT:
            raise ConfigError(f"must be an object with format {FORMAT!r} and skipped.")
        return Skipped.from_json(content["skipped"])
    except ConfigError as error:
        raise ConfigError(f"{path}: {error} Restore it, or delete it to train what it leaves out.") from None


def write_journal(directory: Path, skipped: Skipped, groups: Groups) -> None:
    """Replace the file, durably. Collective: rank 0 writes.

    Raises:
        SaveError: on every rank, if it could not be written.
    """
    error: OSError | None = None
    if groups.rank == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            part = directory / f"{NAME}.part"
            layout.write_json(part, {"format": FORMAT, "skipped": skipped.to_json()})
            os.replace(part, directory / NAME)
            layout.sync(directory)
        except OSError as found:
            error = found
    failed = torch.tensor([error is not None], dtype=torch.int32, device=groups.device)
    if groups.world_size > 1:
        dist.broadcast(failed, 0)
    if int(failed):
        why = f": {error}" if error is not None else " by rank 0"
        raise SaveError(f"{directory / NAME} could not be written{why}. Without it a resume would train other data.")
