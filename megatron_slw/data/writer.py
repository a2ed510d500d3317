"""Writer of Megatron's indexed token datasets: streams the tokens, shows nothing before all is on disk."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.layout import DTYPES, Header, Paths, dataset_paths
from megatron_slw.data.sidecar import Sidecar, TokenizerInfo

_LONGEST = 2**31 - 1  # the format has 32-bit lengths
_LENGTH = np.dtype("<i4")
_BLOCK = 1 << 16
_CHUNK = 1 << 22


class Committed(NamedTuple):
    """What of a dataset is safe on disk."""

    documents: int
    tokens: int


class IndexedDatasetWriter:
    """Writes PREFIX.bin, PREFIX.idx and PREFIX.json; a context manager that throws away what is not finished.

    All three are written under temporary names (PREFIX.bin.partial and so on), synced, and renamed by
    `finish`, the index last: without an index there is no dataset. Memory does not grow with the dataset: the lengths
    of the documents go to a temporary file as well.

    A dataset that takes hours can survive its process: `commit` makes what was added durable, `keep` leaves the
    temporary files behind, and a later writer goes on from what a commit returned.

    Args:
        prefix: path without ending; its folder is made where missing.
        dtype: uint16 or int32, see `layout.dtype_for`.
        going_on: what `commit` returned in another process, and `can_go_on` allows.
        temporary: what temporary names end with.

    Raises:
        ConfigError: the folder cannot be written, or another process is writing this dataset.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: np.dtype[np.integer],
        going_on: Committed | None = None,
        temporary: str = ".partial",
    ) -> None:
        if dtype not in DTYPES.values():
            raise ValueError(f"token ids are stored as uint16 or int32, not {dtype}")
        self.dtype = dtype
        self.paths = dataset_paths(prefix)
        self._partial = {path: path.with_name(path.name + temporary) for path in self.paths}
        self._published = self.paths.bin.with_name(self.paths.bin.name + ".published" + temporary)
        self._lengths_path = lengths_path(self.paths, temporary)
        done = going_on or Committed(0, 0)
        self._bin = _open_alone(self._partial[self.paths.bin], done.tokens * dtype.itemsize)
        self._digest = hashlib.sha256()
        if going_on is not None:
            self._digest_again()
        self._lengths = self._lengths_path.open("ab")
        self._lengths.truncate(done.documents * _LENGTH.itemsize)
        self._documents, self._tokens = done
        self._finished = False

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return self._documents

    @property
    def tokens(self) -> int:
        """Tokens added so far."""
        return self._tokens

    @property
    def partial_bin(self) -> Path:
        """The temporary file of the tokens."""
        return self._partial[self.paths.bin]

    @property
    def partial_lengths(self) -> Path:
        """The temporary file of the lengths, little-endian int32."""
        return self._lengths_path

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
        self._lengths.write(lengths.astype(_LENGTH).tobytes())
        self._documents += len(lengths)
        self._tokens += len(tokens)

    def commit(self) -> Committed:
        """Make sure that what was added survives a crash, and return how much that is."""
        _sync(self._bin)
        _sync(self._lengths)
        return Committed(self.documents, self.tokens)

    def bin_sha256(self) -> str:
        """SHA-256 of the tokens so far, as they lie in the .bin."""
        return self._digest.hexdigest()

    def finish(
        self, tokenizer: TokenizerInfo | None = None, text_bytes: int | None = None, empty_documents: int = 0
    ) -> Sidecar:
        """Write index and sidecar, and put the three files in place; return what the sidecar says."""
        sidecar = self.publish(Sidecar(tokenizer, 0, empty_documents, 0, text_bytes, "", ""))
        self.clean_up()
        return sidecar

    def publish(self, facts: Sidecar) -> Sidecar:
        """Put the three files in place, but leave the temporary ones so that it could be done again.

        Args:
            facts: the sidecar; its counts and SHA-256s are filled in here.

        Returns:
            The sidecar as it was written.
        """
        self.commit()
        idx_digest = hashlib.sha256()
        with self._partial[self.paths.idx].open("wb") as index:
            for piece in self._index_pieces():
                index.write(piece)
                idx_digest.update(piece)
            _sync(index)
        sidecar = replace(
            facts,
            documents=self.documents,
            tokens=self.tokens,
            bin_sha256=self.bin_sha256(),
            idx_sha256=idx_digest.hexdigest(),
        )
        with self._partial[self.paths.sidecar].open("w", encoding="utf-8") as text:
            json.dump(sidecar.to_json(), text, indent=2)
            text.write("\n")
            _sync(text)
        # An index left from an older dataset must not be found beside the new tokens.
        self.paths.idx.unlink(missing_ok=True)
        sync_folder(self.paths.idx.parent)
        os.replace(self._second_name(), self.paths.bin)
        for path in (self.paths.sidecar, self.paths.idx):
            os.replace(self._partial[path], path)
        sync_folder(self.paths.idx.parent)
        return sidecar

    def clean_up(self) -> None:
        """Remove the temporary files; for `abort`, and after `publish`."""
        for path in (*self._partial.values(), self._published, self._lengths_path):
            path.unlink(missing_ok=True)
        self._close()

    def abort(self) -> None:
        """Remove the temporary files; does nothing after `finish` or `keep`."""
        if not self._finished:
            self.clean_up()

    def keep(self) -> None:
        """Leave the temporary files to a later writer."""
        if not self._finished:
            self._close()

    def _close(self) -> None:
        self._finished = True
        self._lengths.close()
        self._bin.close()  # last: while it is open no other process takes the temporary names

    def _second_name(self) -> Path:
        """The temporary .bin, or where the file system can, another name for it, so that the first survives."""
        self._published.unlink(missing_ok=True)
        try:
            os.link(self._partial[self.paths.bin], self._published)
        except OSError:
            return self._partial[self.paths.bin]
        return self._published

    def _digest_again(self) -> None:
        with self._partial[self.paths.bin].open("rb") as file:
            while piece := file.read(_CHUNK):
                self._digest.update(piece)

    def __enter__(self) -> IndexedDatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _index_pieces(self) -> Iterator[bytes]:
        documents = self.documents
        yield Header(self.dtype, documents, documents + 1).pack()
        for lengths in self._length_blocks():
            yield lengths.tobytes()
        end = 0
        for lengths in self._length_blocks():
            sizes = lengths.astype(np.int64) * self.dtype.itemsize
            ends = np.cumsum(sizes) + end
            yield (ends - sizes).astype("<i8").tobytes()
            end = int(ends[-1])
        for first in range(0, documents + 1, _BLOCK):
            yield np.arange(first, min(first + _BLOCK, documents + 1), dtype="<i8").tobytes()

    def _length_blocks(self) -> Iterator[np.ndarray]:
        with self._lengths_path.open("rb") as file:
            while block := file.read(_BLOCK * _LENGTH.itemsize):
                yield np.frombuffer(block, _LENGTH)


def lengths_path(paths: Paths, temporary: str = ".partial") -> Path:
    """Where a writer keeps the lengths of the documents so far, little-endian int32."""
    return paths.idx.with_suffix(f".lengths{temporary}")


def can_go_on(prefix: str | Path, dtype: np.dtype[np.integer], done: Committed) -> bool:
    """Whether the temporary files of `prefix` hold at least what was committed."""
    paths = dataset_paths(prefix)
    tokens = paths.bin.with_name(paths.bin.name + ".partial")
    try:
        whole_tokens = tokens.stat().st_size >= done.tokens * dtype.itemsize
        return whole_tokens and lengths_path(paths).stat().st_size >= done.documents * _LENGTH.itemsize
    except OSError:
        return False


def _open_alone(path: Path, size: int) -> IO[bytes]:
    """Open a temporary file that no other process may be writing, and cut it after its first `size` bytes."""
    if not size and path.exists() and path.stat().st_nlink > 1:
        path.unlink()  # a run was killed after it had published this very file: emptying it would empty the dataset
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("ab")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}. Use another --output-prefix.") from None
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
        raise ConfigError(f"{path} is being written by another process. Wait for it, or use another --output-prefix.")
    if os.fstat(file.fileno()).st_size != size:
        file.truncate(size)
    return file


def _sync(file: IO[bytes] | IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
