"""Reader of Megatron's indexed token datasets: checked as a whole when opened, then only ever sliced."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.data.layout import AGAIN, HEADER, Header, dataset_paths, read_header
from megatron_slw.data.sidecar import file_sha256, read_sidecar

_BLOCK = 1 << 16
"""Sequences checked at once: the temporary arrays stay in the cache, whatever the size of the dataset."""


class IndexedDataset:
    """A token dataset, mapped into memory read-only; opening it reads the index once and no token.

    The arrays it gives are views of the mapping and stay valid when this object is gone. As with every
    mapped file, a .bin that somebody shortens while it is open ends the process: datasets are replaced by
    renaming, never rewritten in place.

    Attributes:
        tokens: every token, in file order, shape (num_tokens,), read-only.
        lengths: tokens of each sequence, shape (num_sequences,), int32, read-only.
        document_bounds: first sequence of each document, then num_sequences, shape (num_documents + 1,).
        sidecar: what PREFIX.json says; None without one.

    Raises:
        ConfigError: a file is missing or damaged, or they do not belong together; it names file and field.
    """

    def __init__(self, prefix: str | Path) -> None:
        self.prefix = str(prefix)
        self.paths = dataset_paths(prefix)
        index, bin_data = _map(self.paths.idx), _map(self.paths.bin)
        header = read_header(bytes(index[: HEADER.size]), len(index), self.paths.idx)
        lengths, pointers, bounds = _index_arrays(index, header)
        _check_sequences(lengths, pointers, header.dtype.itemsize, len(bin_data), self.paths.idx)
        _check_bounds(bounds, header.sequences, self.paths.idx)
        self.dtype = header.dtype
        self.lengths = lengths
        self.document_bounds = bounds
        self.tokens = np.frombuffer(bin_data, header.dtype)
        self._pointers = pointers
        self.sidecar = read_sidecar(self.paths.sidecar)
        self._check_sidecar()

    @property
    def num_sequences(self) -> int:
        """Sequences; preprocess_data.py writes one for each document."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        """Documents, each a run of sequences."""
        return len(self.document_bounds) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return len(self.tokens)

    def __len__(self) -> int:
        return self.num_sequences

    def __getitem__(self, sequence: int) -> np.ndarray:
        """Return the tokens of one sequence; IndexError outside [0, num_sequences)."""
        if not 0 <= sequence < self.num_sequences:
            raise IndexError(f"sequence {sequence} is not in {self.prefix}: it has {self.num_sequences}")
        first = int(self._pointers[sequence]) // self.dtype.itemsize
        return self.tokens[first : first + int(self.lengths[sequence])]

    def document_start(self, document: int) -> int:
        """Return the position in `tokens` where a document begins; num_documents gives num_tokens."""
        sequence = int(self.document_bounds[document])
        if sequence == self.num_sequences:
            return self.num_tokens
        return int(self._pointers[sequence]) // self.dtype.itemsize

    def document_starts(self, documents: np.ndarray) -> np.ndarray:
        """Return `document_start` of each of many documents, int64 of the same shape."""
        sequences = self.document_bounds[documents]
        if self.num_sequences == 0:
            return np.zeros(sequences.shape, np.int64)
        starts = self._pointers[np.minimum(sequences, self.num_sequences - 1)] // self.dtype.itemsize
        return np.where(sequences == self.num_sequences, self.num_tokens, starts)

    def document(self, document: int) -> np.ndarray:
        """Return the tokens of one document; IndexError outside [0, num_documents)."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} is not in {self.prefix}: it has {self.num_documents}")
        return self.tokens[self.document_start(document) : self.document_start(document + 1)]

    def _check_sidecar(self) -> None:
        if self.sidecar is None:
            return
        for name, found in (("documents", self.num_documents), ("tokens", self.num_tokens)):
            said = getattr(self.sidecar, name)
            if said != found:
                raise ConfigError(
                    f"{self.paths.sidecar}: {name} is {said:,}, but the dataset has {found:,}: the files are "
                    f"not of one run. {AGAIN}"
                )


def verify_checksums(dataset: IndexedDataset) -> None:
    """Read both files and compare them with the sidecar's SHA-256; the only check that sees a flipped bit.

    Raises:
        ConfigError: naming the file that differs, or the sidecar that is missing.
    """
    if dataset.sidecar is None:
        raise ConfigError(
            f"{dataset.paths.sidecar} is missing: there is no checksum to compare with. {AGAIN}"
        )
    expected = (dataset.sidecar.bin_sha256, dataset.sidecar.idx_sha256)
    for path, sha256 in zip((dataset.paths.bin, dataset.paths.idx), expected, strict=True):
        found = file_sha256(path)
        if found != sha256:
            raise ConfigError(
                f"{path}: its SHA-256 is {found}, but {dataset.paths.sidecar.name} says {sha256}: the file "
                f"is damaged. {AGAIN}"
            )


def _map(path: Path) -> memoryview:
    """The bytes of a file, mapped. The mapping lives as long as any view of it."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                return memoryview(b"")  # an empty file cannot be mapped
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise ConfigError(
            f"{path} does not exist. Set data.path to the prefix of a .bin/.idx pair, or make one with "
            "preprocess_data.py."
        ) from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}. Set data.path to a readable dataset."
        ) from None


def _index_arrays(index: memoryview, header: Header) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lengths, byte offsets and document bounds. They are not aligned: numpy copes, C code might not."""
    at = HEADER.size
    lengths = np.frombuffer(index, "<i4", header.sequences, at)
    at += lengths.nbytes
    pointers = np.frombuffer(index, "<i8", header.sequences, at)
    at += pointers.nbytes
    return lengths, pointers, np.frombuffer(index, "<i8", header.bounds, at)


def _check_sequences(
    lengths: np.ndarray, pointers: np.ndarray, itemsize: int, bin_size: int, path: Path
) -> None:
    """Each sequence begins where the one before it ends, and the last ends where the .bin does."""
    end = 0
    for first in range(0, len(lengths), _BLOCK):
        part = lengths[first : first + _BLOCK].astype(np.int64)
        if int(part.min()) < 0:
            bad = int(np.argmax(part < 0))
            raise ConfigError(f"{path}: lengths[{first + bad}] is {part[bad]}, below 0. {AGAIN}")
        part *= itemsize
        starts = np.cumsum(part)
        starts += end
        block_end = int(starts[-1])
        starts -= part
        found = pointers[first : first + _BLOCK]
        if not np.array_equal(starts, found):
            bad = int(np.argmax(starts != found))
            raise ConfigError(
                f"{path}: pointers[{first + bad}] is {found[bad]:,}, but the sequences before it take "
                f"{starts[bad]:,} bytes. {AGAIN}"
            )
        end = block_end
        if end > bin_size:
            break  # and never so far that the sum could overflow
    if end != bin_size:
        total = "at least " if end > bin_size else ""
        raise ConfigError(
            f"{path.with_suffix('.bin')}: size is {bin_size:,} bytes, but the lengths in {path.name} need "
            f"{total}{end:,}. {AGAIN}"
        )


def _check_bounds(bounds: np.ndarray, sequences: int, path: Path) -> None:
    if bounds[0] != 0:
        raise ConfigError(f"{path}: document_index[0] is {bounds[0]}, not 0. {AGAIN}")
    if bounds[-1] != sequences:
        raise ConfigError(
            f"{path}: document_index[{len(bounds) - 1}], the last, is {bounds[-1]:,}, but there are "
            f"{sequences:,} sequences. {AGAIN}"
        )
    for first in range(0, len(bounds) - 1, _BLOCK):
        part = bounds[first : first + _BLOCK + 1]
        falls = part[1:] < part[:-1]
        if falls.any():
            bad = first + 1 + int(np.argmax(falls))
            raise ConfigError(
                f"{path}: document_index[{bad}] is {bounds[bad]:,}, after {bounds[bad - 1]:,}: it must not "
                f"fall. {AGAIN}"
            )
