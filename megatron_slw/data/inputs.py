"""What --input names, as one list of files in an order that depends on nothing but their names."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.compressed import STANDARD_INPUT

LINE_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
"""Files with one JSON object a line."""
TEXT_ENDINGS = (".txt", ".txt.gz", ".txt.zst")
"""Files that are one document each, or documents with blank lines between them."""
PARQUET_ENDINGS = (".parquet",)
"""Files with one document a row."""
ENDINGS = LINE_ENDINGS + TEXT_ENDINGS + PARQUET_ENDINGS
NAMED_SOURCES = 200
"""So many files does a sidecar name; all are in its digest."""


@dataclass(frozen=True)
class Sources:
    """The files a dataset was made of, as the sidecar tells it."""

    files: int
    bytes: int
    """As they lie on disk; 0 for standard input."""
    sha256: str
    """Of the list of all names and sizes: equal lists in equal order give equal digests."""
    first: list[list[str | int]]
    """Name and size of the first of them, NAMED_SOURCES at most."""


def expand_inputs(names: Sequence[str]) -> tuple[str, ...]:
    """Return the files that `names` stand for: files, folders, glob patterns, or "-" for standard input.

    The order is that of `names`; a folder (with everything below it) and a pattern stand for their files sorted by
    path, byte by byte, so that no locale or file system changes it. In folders hidden files and files with other
    endings are passed over. A file named twice is read twice.

    Raises:
        ConfigError: a name that stands for no file, an unknown ending, or standard input twice.
    """
    files: list[str] = []
    for name in names:
        if name == STANDARD_INPUT or os.path.isfile(name):
            files.append(name)
        elif os.path.isdir(name):
            files += _folder(name)
        elif glob.has_magic(name):
            files += _pattern(name)
        else:
            files.append(name)  # check_inputs says what is wrong with it
    if files.count(STANDARD_INPUT) > 1:
        raise ConfigError("--input names standard input (-) twice, but it can be read only once.")
    return tuple(files)


def check_inputs(paths: Sequence[str]) -> int:
    """Return the size of all files in bytes.

    Raises:
        ConfigError: one does not exist or has an ending that is not known.
    """
    total = 0
    for path in paths:
        if path == STANDARD_INPUT:
            continue
        if not path.endswith(ENDINGS):
            raise ConfigError(f"{path}: --input must end in {', '.join(ENDINGS)}.")
        if not Path(path).is_file():
            raise ConfigError(f"{path} does not exist or is not a file. --input must name text files.")
        total += Path(path).stat().st_size
    return total


def describe_sources(paths: Sequence[str]) -> Sources:
    """Return what the sidecar says of the files `paths`."""
    digest, total = hashlib.sha256(), 0
    first: list[list[str | int]] = []
    for path in paths:
        size = 0 if path == STANDARD_INPUT else os.stat(path).st_size
        digest.update(os.fsencode(path) + b"\0%d\n" % size)
        total += size
        if len(first) < NAMED_SOURCES:
            first.append([os.fsencode(path).decode("utf-8", "backslashreplace"), size])
    return Sources(len(paths), total, digest.hexdigest(), first)


def inputs_state(paths: Sequence[str]) -> str | None:
    """Return a digest that changes when a file is exchanged, changed or touched; None for standard input.

    Of each file: name, size, and the times of its last change; not the contents, which would be a pass over all of it.
    """
    if STANDARD_INPUT in paths:
        return None
    digest = hashlib.sha256()
    for path in paths:
        found = os.stat(path)
        digest.update(os.fsencode(path) + b"\0%d %d %d\n" % (found.st_size, found.st_mtime_ns, found.st_ctime_ns))
    return digest.hexdigest()


def _folder(name: str) -> list[str]:
    found = []
    for folder, inner, files in os.walk(name):
        inner[:] = [child for child in inner if not child.startswith(".")]
        found += [os.path.join(folder, file) for file in files if not file.startswith(".") and file.endswith(ENDINGS)]
    if not found:
        raise ConfigError(f"{name}: there is no file in this folder that ends in {', '.join(ENDINGS)}.")
    return sorted(found, key=os.fsencode)


def _pattern(name: str) -> list[str]:
    found = [path for path in glob.glob(name, recursive=True) if os.path.isfile(path)]
    if not found:
        raise ConfigError(f"{name}: no file fits this pattern of --input.")
    return sorted(found, key=os.fsencode)
