"""What a checkpoint is on disk, and when it counts as one. No tensors here.

    step_000400/
      tensors-00000-000.safetensors   blocks of logical tensors, by the rank that wrote them
      index-00000.json                which block of which tensor lies in which of the rank's files
      state.json                      progress, plan, resolved configuration, optimizer steps, dataset
      manifest.json                   size and SHA-256 of every other file; written last

A save goes to `step_000400.writing/`; every file is fsynced, the manifest follows, and one rename makes it a
checkpoint. So a directory without `.writing` and with a manifest is complete, whenever the power went. The start of a
run gives a complete one that was cut off before the rename its name; all else is debris, which it removes.

Keys are `weight/NAME`, `exp_avg/NAME`, ...: always fp32 (the masters, of which lower-precision weights are roundings).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.json_file import read_json
from megatron_slw.progress import whole_number

FORMAT, VERSION = "megatron_slw.checkpoint", 3
MANIFEST, STATE = "manifest.json", "state.json"
WRITING, DELETING = ".writing", ".deleting"
MAX_JSON_BYTES = 64 << 20
_STEP = re.compile(r"step_(\d{6,12})")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class FileRecord:
    """One line of the manifest."""

    size: int
    sha256: str


def step_folder(directory: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return directory / f"step_{step:06d}"


def index_name(rank: int) -> str:
    """The file that lists a rank's blocks."""
    return f"index-{rank:05d}.json"


def tensors_name(rank: int, part: int) -> str:
    """A file of a rank's blocks."""
    return f"tensors-{rank:05d}-{part:03d}.safetensors"


def is_step_name(name: str) -> bool:
    """Whether a folder of this name counts as a checkpoint of a run."""
    return _STEP.fullmatch(name) is not None


def complete_checkpoints(directory: Path) -> list[Path]:
    """Every complete checkpoint of a run, oldest first."""
    if not directory.is_dir():
        return []
    found = [
        (int(match[1]), path)
        for path in directory.iterdir()
        if (match := _STEP.fullmatch(path.name)) and (path / MANIFEST).is_file()
    ]
    return [path for _, path in sorted(found)]


def latest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint of a run, if there is one."""
    found = complete_checkpoints(directory)
    return found[-1] if found else None


def file_record(path: Path, progress: Callable[[int], None] = lambda _: None) -> FileRecord:
    """Size and SHA-256 of a file; `progress` is told of each block of bytes read."""
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            size += len(block)
            progress(len(block))
    return FileRecord(size, digest.hexdigest())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write and fsync."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """fsync a file, or a directory so that the names in it last."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def commit(writing: Path, final: Path, files: Mapping[str, FileRecord], keep_last: int) -> None:
    """Turn a fully written folder into a checkpoint, then delete the oldest ones beyond `keep_last`.

    Args:
        writing: the folder with every file but the manifest, all fsynced.
        final: its name as a checkpoint; an existing one of the same step is replaced.
        files: the record of every file.
        keep_last: complete checkpoints to keep, the new one among them whatever its step.
    """
    write_manifest(writing, files)
    rename_complete(writing, final)
    older = [path for path in complete_checkpoints(final.parent) if path != final]
    for old in older[: len(older) + 1 - keep_last]:
        with contextlib.suppress(OSError):  # the new one is complete; the next save tries again
            delete(old)


def make_empty(folder: Path) -> None:
    """An empty folder in the place of whatever is there; the names on the way to it last."""
    shutil.rmtree(folder, ignore_errors=True)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def write_manifest(writing: Path, files: Mapping[str, FileRecord]) -> None:
    """List the fully written, fsynced files of a folder; from now on `rename_complete` makes it a checkpoint."""
    listed = {name: {"bytes": record.size, "sha256": record.sha256} for name, record in sorted(files.items())}
    write_json(writing / MANIFEST, {"format": FORMAT, "version": VERSION, "files": listed})
    sync(writing)


def rename_complete(writing: Path, final: Path) -> None:
    """Give a folder with a manifest its name as a checkpoint, in the place of an older one of that name.

    Between the two renames neither has the name; `remove_debris` finishes what is cut short there.
    """
    doomed = final.with_name(final.name + DELETING)
    if final.exists():
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(final, doomed)
    os.rename(writing, final)
    sync(final.parent)
    shutil.rmtree(doomed, ignore_errors=True)


def delete(checkpoint: Path) -> None:
    """Remove a checkpoint. The rename comes first: a deletion cut short never leaves half a checkpoint behind."""
    doomed = checkpoint.with_name(checkpoint.name + DELETING)
    shutil.rmtree(doomed, ignore_errors=True)
    os.rename(checkpoint, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_debris(directory: Path) -> None:
    """Finish a save that only wanted its name; remove what else saves and deletions that were cut short left behind.

    Only while nothing is being saved.

    Raises:
        OSError: the directory cannot be read or written.
    """
    if directory.is_dir():
        for path in sorted(directory.glob(f"step_*{WRITING}")):
            final = path.with_name(path.name.removesuffix(WRITING))
            if _STEP.fullmatch(final.name) and not final.exists() and _is_whole(path):
                rename_complete(path, final)
        for path in directory.iterdir():
            stem = path.name.removesuffix(WRITING).removesuffix(DELETING)
            if stem != path.name and _STEP.fullmatch(stem):
                shutil.rmtree(path, ignore_errors=True)


def _is_whole(folder: Path) -> bool:
    """Whether it is what its manifest says, by names and sizes, and holds nothing else."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        names = set(read_manifest(folder))
    except ConfigError:
        return False
    return {path.name for path in folder.iterdir()} == names | {MANIFEST}


def read_manifest(checkpoint: Path) -> dict[str, FileRecord]:
    """The manifest's files, checked: plain names, present, of the recorded size.

    Raises:
        ConfigError: naming the checkpoint and the file.
    """
    where = f"checkpoint {checkpoint.name}"
    if not (checkpoint / MANIFEST).is_file():
        hint = _other(checkpoint)
        raise ConfigError(f"{where}: {checkpoint} has no {MANIFEST}, so it is not a complete checkpoint.{hint}")
    content = read_checkpoint_json(checkpoint, MANIFEST)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        found = f"{content.get('format')!r:.60} version {content.get('version')!r:.20}"
        raise ConfigError(f"{where}: {MANIFEST} says {found}, but this program reads {FORMAT!r} version {VERSION}.")
    files = content.get("files")
    if not isinstance(files, dict) or STATE not in files:
        raise ConfigError(f"{where}: {MANIFEST} must have an object 'files' that lists {STATE}.")
    records = {name: _record(checkpoint, name, entry) for name, entry in files.items()}
    for name, record in records.items():
        path = checkpoint / name
        if path.is_symlink() or not path.is_file():
            raise ConfigError(f"{where}: {name} is listed in {MANIFEST} but is not there.{_other(checkpoint)}")
        if path.stat().st_size != record.size:
            raise ConfigError(
                f"{where}: {name} has {path.stat().st_size} bytes, but {MANIFEST} says {record.size}."
                + _other(checkpoint)
            )
    return records


def verify(checkpoint: Path, records: Mapping[str, FileRecord], names: list[str]) -> None:
    """Compare the SHA-256 of the files `names` with the manifest.

    Raises:
        ConfigError: naming the first file that differs.
    """
    for name in names:
        if file_record(checkpoint / name) != records[name]:
            raise ConfigError(
                f"checkpoint {checkpoint.name}: {name} does not match its SHA-256 in {MANIFEST}."
                + _other(checkpoint)
            )


def read_checkpoint_json(checkpoint: Path, name: str) -> dict[str, Any]:
    """A JSON file of a checkpoint, strictly; ConfigError names both."""
    try:
        return read_json(checkpoint / name, max_bytes=MAX_JSON_BYTES)
    except ConfigError as error:
        raise ConfigError(f"checkpoint {checkpoint.name}: {name} {error}{_other(checkpoint)}") from None


def _record(checkpoint: Path, name: str, entry: Any) -> FileRecord:
    where = f"checkpoint {checkpoint.name}: {MANIFEST} files"
    if not _FILE.fullmatch(name) or name == MANIFEST:
        raise ConfigError(f"{where} lists {name!r:.80}, which is not a plain file name.")
    if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
        raise ConfigError(f"{where}.{name} must have just bytes and sha256, but is {entry!r:.80}.")
    if not isinstance(entry["sha256"], str) or not re.fullmatch(r"[0-9a-f]{64}", entry["sha256"]):
        raise ConfigError(f"{where}.{name}.sha256 is not a SHA-256: {entry['sha256']!r:.80}.")
    return FileRecord(whole_number(entry["bytes"], f"{where}.{name}.bytes"), entry["sha256"])


def _other(checkpoint: Path) -> str:
    """Where to go on from instead, as the end of an error message."""
    others = [path for path in complete_checkpoints(checkpoint.parent) if path.name != checkpoint.name]
    if not others:
        return ""
    return f" {others[-1].name} is complete: to go on from it, move {checkpoint.name} out of {checkpoint.parent}."
