"""Writer of Megatron's indexed token datasets: streams the tokens, shows nothing before all is on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.layout import DTYPES, Header, dataset_paths
from megatron_slw.data.sidecar import Sidecar, TokenizerInfo

_LONGEST = 2**31 - 1  # the format has 32-bit lengths
_BLOCK = 1 << 16


class IndexedDatasetWriter:
    """Writes PREFIX.bin, PREFIX.idx and PREFIX.json; a context manager that throws away what is not finished.

    All three are written under temporary names (PREFIX.bin.partial and so on), synced, and renamed by
    `finish`, the index last: without an index there is no dataset. Memory: 4 bytes for each document.

    Args:
        prefix: path without ending; its folder is made where missing.
        dtype: uint16 or int32, see `layout.dtype_for`.

    Raises:
        ConfigError: the folder cannot be written, or another process is writing this dataset.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype[np.integer]) -> None:
        if dtype not in DTYPES.values():
            raise ValueError(f"token ids are stored as uint16 or int32, not {dtype}")
        self.dtype = dtype
        self.paths = dataset_paths(prefix)
        self._partial = {path: path.with_name(path.name + ".partial") for path in self.paths}
        self._bin = _open_alone(self._partial[self.paths.bin])
        self._digest = hashlib.sha256()
        self._lengths = array("i")
        self._tokens = 0
        self._finished = False

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return self._tokens

    def add_document(self, tokens: np.ndarray) -> None:
        """Append one document, a 1-D integer array."""
        self.add_documents(tokens, np.array([len(tokens)]))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents whose tokens stand one after the other in `tokens`.

        Args:
            tokens: integers, shape (sum of lengths,).
            lengths: tokens of each document, shape (documents,).

        Raises:
            ValueError: the lengths do not add up, or an id does not fit the dtype.
        """
        if tokens.ndim != 1 or int(lengths.sum()) != len(tokens):
            raise ValueError(f"lengths add up to {int(lengths.sum())}, but tokens has shape {tokens.shape}")
        if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= _LONGEST:
            raise ValueError(f"a document has {int(lengths.max())} tokens, the format holds {_LONGEST}")
        if tokens.dtype != self.dtype and len(tokens):
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high > np.iinfo(self.dtype).max:
                raise ValueError(f"token ids {low} to {high} do not fit {self.dtype}")
        data = np.ascontiguousarray(tokens, self.dtype).data.cast("B") if len(tokens) else b""
        self._bin.write(data)
        self._digest.update(data)
        self._lengths.frombytes(lengths.astype(np.int32).tobytes())
        self._tokens += len(tokens)

    def finish(
        self,
        tokenizer: TokenizerInfo | None = None,
        text_bytes: int | None = None,
        empty_documents: int = 0,
    ) -> Sidecar:
        """Write index and sidecar, and put the three files in place; return what the sidecar says."""
        _sync(self._bin)
        idx_digest = hashlib.sha256()
        with self._partial[self.paths.idx].open("wb") as index:
            for piece in self._index_pieces():
                index.write(piece)
                idx_digest.update(piece)
            _sync(index)
        sidecar = Sidecar(
            tokenizer=tokenizer,
            documents=self.documents,
            empty_documents=empty_documents,
            tokens=self.tokens,
            text_bytes=text_bytes,
            bin_sha256=self._digest.hexdigest(),
            idx_sha256=idx_digest.hexdigest(),
        )
        with self._partial[self.paths.sidecar].open("w", encoding="utf-8") as text:
            json.dump(sidecar.to_json(), text, indent=2)
            text.write("\n")
            _sync(text)
        # An index left from an older dataset must not be found beside the new tokens.
        self.paths.idx.unlink(missing_ok=True)
        _sync_folder(self.paths.idx.parent)
        for path in (self.paths.bin, self.paths.sidecar, self.paths.idx):
            os.replace(self._partial[path], path)
        _sync_folder(self.paths.idx.parent)
        self._finished = True
        self._bin.close()  # and not earlier: while it is open no other process takes the temporary name
        return sidecar

    def abort(self) -> None:
        """Remove the temporary files; does nothing after `finish`."""
        if self._finished:
            return
        for path in self._partial.values():
            path.unlink(missing_ok=True)
        self._bin.close()

    def __enter__(self) -> IndexedDatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _index_pieces(self) -> Iterator[bytes]:
        documents = self.documents
        lengths = np.frombuffer(self._lengths, np.int32) if documents else np.empty(0, np.int32)
        yield Header(self.dtype, documents, documents + 1).pack()
        yield lengths.astype("<i4").tobytes()
        end = 0
        for first in range(0, documents, _BLOCK):
            sizes = lengths[first : first + _BLOCK].astype(np.int64) * self.dtype.itemsize
            ends = np.cumsum(sizes) + end
            yield (ends - sizes).astype("<i8").tobytes()
            end = int(ends[-1])
        for first in range(0, documents + 1, _BLOCK):
            yield np.arange(first, min(first + _BLOCK, documents + 1), dtype="<i8").tobytes()


def _open_alone(path: Path) -> IO[bytes]:
    """Open a temporary file that no other process may be writing; what a killed run left in it is dropped."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Use another --output-prefix."
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between opening and locking, its writer may have finished and renamed it to the real .bin.
        alone = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except BlockingIOError:
        alone = False
    except OSError:
        alone = True  # this file system has no locks
    if not alone:
        file.close()
        raise ConfigError(
            f"{path} is being written by another process. Wait for it, or use another --output-prefix."
        )
    file.truncate(0)
    return file


def _sync(file: IO[bytes] | IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
