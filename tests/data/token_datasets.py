"""Small token datasets for tests, and ways to damage one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_slw.data.indexed import IndexedDataset
from megatron_slw.data.layout import DTYPES
from megatron_slw.data.sidecar import TokenizerInfo
from megatron_slw.data.writer import IndexedDatasetWriter

UINT16, INT32 = DTYPES[8], DTYPES[4]
TOKENIZER = TokenizerInfo("HuggingFaceTokenizer", "tokenizer.json", "ab" * 32, 50_257, 50_256)


def write_dataset(
    prefix: Path,
    documents: Sequence[Sequence[int]],
    dtype: np.dtype[np.integer] = UINT16,
    tokenizer: TokenizerInfo | None = TOKENIZER,
) -> IndexedDataset:
    """Write a dataset with the project's writer and open it."""
    with IndexedDatasetWriter(prefix, dtype) as writer:
        for document in documents:
            writer.add_document(np.array(document, dtype))
        writer.finish(tokenizer, text_bytes=4 * writer.tokens)
    return IndexedDataset(prefix)


def counting_dataset(prefix: Path, lengths: Sequence[int]) -> IndexedDataset:
    """A dataset whose token at position i is i, so that a window shows where it was read."""
    ends = np.cumsum(lengths)
    return write_dataset(
        prefix, [range(end - size, end) for end, size in zip(ends, lengths, strict=True)], INT32
    )
