"""Fixed-length samples of a token stream. They are arithmetic: nothing is built, stored or kept in step.

The documents of a split, one after the other, are one stream of tokens. Window w holds N labels and so the
N + 1 tokens [w * N, w * N + N + 1): the last token of a window is the first of the next, each label belongs
to exactly one window, and only a remainder of fewer than N labels at the end of the stream is in none.
Windows cross document boundaries, as GPT-2's did.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from megatron_slw.config.errors import ConfigError, show
from megatron_slw.config.schema import DataConfig
from megatron_slw.data.documents import document_starts
from megatron_slw.data.indexed import IndexedDataset

SplitName = Literal["train", "valid", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "valid", "test")


@dataclass(frozen=True)
class Windows:
    """The windows of one split.

    Raises:
        ConfigError: the stream is shorter than one window.
    """

    dataset: IndexedDataset
    name: str
    """The split, as an error message names it."""
    tokens: np.ndarray
    """The stream: a contiguous 1-D view of the dataset."""
    length: int
    """N, the labels of a window."""
    offset: int = 0
    """Position of the stream's first token in `dataset.tokens`."""

    def __post_init__(self) -> None:
        if len(self.tokens) < self.length + 1:
            raise ConfigError(
                f"{self.dataset.prefix}: {self.name} has {len(self.tokens):,} tokens, but one window "
                f"of model.seq_length {self.length} needs {self.length + 1:,}. Use a larger dataset, give "
                "this part a larger share in data.split, or lower model.seq_length."
            )

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.length

    def gather(self, index: np.ndarray, length: int) -> np.ndarray:
        """Return the first `length` + 1 tokens of the windows `index`, in the dataset's dtype.

        Args:
            index: window numbers in [0, len(self)), shape (rows,).
            length: labels wanted of each, in [1, N].

        Returns:
            A new array of shape (rows, length + 1).

        Raises:
            ValueError: the length does not fit the window.
            IndexError: an index is out of range.
        """
        if not 1 <= length <= self.length:
            raise ValueError(f"length {length} is not in [1, {self.length}], the window's")
        if index.size and int(index.min()) < 0:
            raise IndexError(f"window {int(index.min())} is below 0")
        # The rows of this view overlap. Indexed with an array it is copied row by row, straight from the
        # mapped file; np.take would first make all of it contiguous.
        size = self.tokens.itemsize
        rows_WT = np.lib.stride_tricks.as_strided(
            self.tokens, (len(self), length + 1), (self.length * size, size), writeable=False
        )
        return rows_WT[index]

    def starts(self, index: np.ndarray, length: int) -> np.ndarray:
        """Return which of the first `length` tokens of the windows `index` are the first of a document.

        Returns:
            bool of shape (rows, length): the inputs alone, not the last label.
        """
        return document_starts(self.dataset, self.offset + index * self.length, length)


def open_windows(data: DataConfig, seq_length: int, name: SplitName, prefix: str | None = None) -> Windows:
    """Open one corpus and return its windows of one split, of `seq_length` labels each.

    With data.valid_path, all of data.path is trained and all of data.valid_path validated.

    Args:
        data: which datasets, and how they are split.
        seq_length: N.
        name: the split.
        prefix: the corpus; None is the first of data.path.

    Raises:
        ConfigError: a dataset is missing or damaged, data.split is not valid, or the split is too small.
    """
    prefix = data.corpora[0].prefix if prefix is None else prefix
    if data.valid_path is not None:
        if name == "test":
            raise ConfigError("data.valid_path is set, so data.split is not used and there is no test set.")
        dataset = IndexedDataset(prefix if name == "train" else data.valid_path)
        return Windows(dataset, "the whole dataset", dataset.tokens, seq_length)
    dataset = IndexedDataset(prefix)
    bounds = split_bounds(data.split, dataset.num_documents)
    part = SPLIT_NAMES.index(name)
    first, last = bounds[part], bounds[part + 1]
    offset = dataset.document_start(first)
    tokens = dataset.tokens[offset : dataset.document_start(last)]
    share = f"{last - first:,} of {dataset.num_documents:,} documents by data.split {data.split}"
    label = f"the {name} part ({share})"
    return Windows(dataset, label, tokens, seq_length, offset)


def split_bounds(split: str, documents: int) -> tuple[int, int, int, int]:
    """Return where train, validation and test begin and end, in documents: (0, a, b, documents).

    Args:
        split: one to three shares of any scale, such as "949,50,1" or "0.9,0.1"; those left out are 0.
        documents: of the whole dataset. Each is in exactly one part; bounds are rounded to the nearest.

    Raises:
        ConfigError: the shares cannot be read, are negative, or are all 0.
    """
    texts = [share.strip() for share in split.split(",")]
    shares = [Fraction(text) for text in texts if re.fullmatch(r"[0-9]{1,20}(\.[0-9]{1,20})?", text)]
    if not len(shares) == len(texts) <= 3 or sum(shares) == 0:
        raise ConfigError(
            f"data.split must be one to three numbers, not all 0, such as 949,50,1, but is {show(split)}."
        )
    shares += [Fraction(0)] * (3 - len(shares))
    one = round(documents * shares[0] / sum(shares))
    two = round(documents * (shares[0] + shares[1]) / sum(shares))
    return 0, one, two, documents
