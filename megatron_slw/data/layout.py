"""The byte layout of Megatron's indexed datasets: PREFIX.idx says where each sequence lies in PREFIX.bin.

PREFIX.idx, little-endian: the 34-byte header (magic, u64 version, u8 dtype code, u64 S sequences, u64 D),
then S i32 lengths in tokens, S i64 byte offsets into PREFIX.bin, D i64 document bounds (numbers of
sequences; the first is 0, the last S, so there are D - 1 documents). PREFIX.bin is the sequences, one after
the other.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_slw.config.errors import ConfigError

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, np.dtype[np.integer]] = {4: np.dtype("<i4"), 8: np.dtype("<u2")}
"""The codes Megatron writes for token ids. gpt-neox and DeepSpeed number the others differently."""
OTHER_DTYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    5: "int64",
    6: "float64",
    7: "float32",
}
BYTES_PER_SEQUENCE = 12
BYTES_PER_BOUND = 8


class Paths(NamedTuple):
    """The files of one dataset."""

    bin: Path
    idx: Path
    sidecar: Path


class Header(NamedTuple):
    """What the first 34 bytes of an index say."""

    dtype: np.dtype[np.integer]
    sequences: int
    bounds: int
    """Entries of the document index: documents + 1."""

    @property
    def index_size(self) -> int:
        """Bytes of the whole .idx file."""
        return HEADER.size + BYTES_PER_SEQUENCE * self.sequences + BYTES_PER_BOUND * self.bounds

    def pack(self) -> bytes:
        """Return the 34 bytes."""
        code = next(code for code, dtype in DTYPES.items() if dtype == self.dtype)
        return HEADER.pack(MAGIC, VERSION, code, self.sequences, self.bounds)


def dataset_paths(prefix: str | Path) -> Paths:
    """Return the files of the dataset at `prefix`, the path without .bin or .idx; they need not exist."""
    text = str(prefix)
    if text.endswith((".bin", ".idx")):
        raise ConfigError(f"{text}: a dataset is named by its prefix. Use {text[:-4]}.")
    return Paths(Path(text + ".bin"), Path(text + ".idx"), Path(text + ".json"))


def dtype_for(vocab_size: int) -> np.dtype[np.integer]:
    """Return the smallest dtype that holds every id below `vocab_size`."""
    return DTYPES[8] if vocab_size <= 65_536 else DTYPES[4]


def read_header(data: bytes, size: int, path: Path) -> Header:
    """Check the header `data` of an index of `size` bytes, and that this is exactly the size it announces.

    Raises:
        ConfigError: naming the file, the field and the values.
    """
    if size < HEADER.size:
        raise ConfigError(f"{path}: the header needs {HEADER.size} bytes, the file has {size}. {AGAIN}")
    magic, version, code, sequences, bounds = HEADER.unpack(data)
    if magic != MAGIC:
        raise ConfigError(
            f"{path}: magic is {magic!r}, not {MAGIC!r}: this is not a Megatron index. Set data.path to the "
            "prefix of files that preprocess_data.py wrote."
        )
    if version != VERSION:
        raise ConfigError(f"{path}: version is {version}, only {VERSION} is known. {AGAIN}")
    if code not in DTYPES:
        known = " and ".join(f"{code} ({dtype.name})" for code, dtype in DTYPES.items())
        found = f"{code} ({OTHER_DTYPES[code]})" if code in OTHER_DTYPES else str(code)
        raise ConfigError(f"{path}: dtype code is {found}, token ids have {known}. {AGAIN}")
    if bounds < 1:
        raise ConfigError(f"{path}: the document index has 0 entries, it must have at least the 0. {AGAIN}")
    header = Header(DTYPES[code], sequences, bounds)
    if size != header.index_size:
        needs = header.index_size - HEADER.size
        what = f"{sequences:,} sequences and {bounds:,} document bounds need {needs:,} bytes after the header"
        if size - header.index_size == sequences:
            fault = "It has modes: multimodal datasets are not supported."
        else:
            fault = f"It {'is cut short' if size < header.index_size else 'has bytes too many'}. {AGAIN}"
        raise ConfigError(f"{path}: {what}, the file has {size - HEADER.size:,}. {fault}")
    return header


AGAIN = "Run preprocess_data.py again."
