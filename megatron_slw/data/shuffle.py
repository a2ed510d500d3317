"""The documents of a dataset in a shuffled order that depends on nothing but their number and a seed."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import numpy as np

from megatron_slw.data.permutation import permutation_key, permute
from megatron_slw.data.writer import IndexedDatasetWriter

_BLOCK = 1 << 14


def copy_shuffled(source: IndexedDatasetWriter, target: IndexedDatasetWriter, seed: int) -> None:
    """Add every document of `source`, which is unfinished, to `target` in the order that `seed` chooses.

    Memory does not grow with the dataset: tokens, lengths and offsets are mapped files, which the system can drop.
    """
    source.commit()
    if not source.tokens:
        return
    tokens = np.memmap(source.partial_bin, source.dtype, "r").view(np.ndarray)  # a memmap's slices are slow
    lengths = np.memmap(source.partial_lengths, "<i4", "r")
    with tempfile.TemporaryFile(dir=source.partial_bin.parent) as file:
        offsets = np.memmap(file, np.int64, "w+", shape=lengths.shape)
        end = 0
        for first in range(0, len(lengths), _BLOCK):
            ends = np.cumsum(lengths[first : first + _BLOCK], dtype=np.int64) + end
            offsets[first : first + _BLOCK] = ends - lengths[first : first + _BLOCK]
            end = int(ends[-1])
        for document in _order(len(lengths), seed):
            start = int(offsets[document])
            target.add_document(tokens[start : start + int(lengths[document])])


def _order(size: int, seed: int) -> Iterator[int]:
    key = permutation_key(seed, 0, "documents")
    for first in range(0, size, _BLOCK):
        yield from permute(np.arange(first, min(first + _BLOCK, size)), size, key).tolist()
