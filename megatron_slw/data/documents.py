"""Where documents begin within pieces of a dataset's token stream, from the document index alone.

No token is looked at: a corpus need not have an end-of-document token, and one that has it may have it inside a
document too. The index stays in the mapped file; nothing that grows with the number of documents is kept in memory.
"""

from __future__ import annotations

import numpy as np

from megatron_slw.data.indexed import IndexedDataset


def document_starts(dataset: IndexedDataset, first: np.ndarray, length: int) -> np.ndarray:
    """Mark the first token of every document within pieces of `dataset.tokens`.

    Args:
        dataset: the tokens and their documents; one without tokens begins nowhere.
        first: position in `dataset.tokens` of the first token of each piece, shape (pieces,).
        length: tokens of a piece.

    Returns:
        bool of shape (pieces, length).
    """
    starts = np.zeros((len(first), length), bool)
    begin, end = _documents_before(dataset, first), _documents_before(dataset, first + length)
    count = end - begin
    piece = np.repeat(np.arange(len(first)), count)
    # The documents of all pieces in a row: each piece counts on from its own first document.
    document = np.arange(len(piece)) + np.repeat(begin - (np.cumsum(count) - count), count)
    starts[piece, dataset.document_starts(document) - first[piece]] = True
    return starts


def _documents_before(dataset: IndexedDataset, position: np.ndarray) -> np.ndarray:
    """How many documents begin before each position: a binary search of all of them at once, int64.

    np.searchsorted would first copy the index, which is not aligned in its file, as a whole.
    """
    low = np.zeros(len(position), np.int64)
    high = np.full(len(position), dataset.num_documents, np.int64)
    for _ in range(dataset.num_documents.bit_length()):
        middle = (low + high) // 2  # num_documents, once it is reached, begins at num_tokens
        before = dataset.document_starts(middle) < position
        open_ = low < high
        low = np.where(open_ & before, middle + 1, low)
        high = np.where(open_ & ~before, middle, high)
    return low
