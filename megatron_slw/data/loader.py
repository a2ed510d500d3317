"""Which samples a step trains, and their tokens: a pure function of the step and the seed.

Sample i of a corpus of n windows is window permute(i mod n) of epoch i // n, with an order of its own in each
epoch; a blend says which corpus's turn it is. So the position in the data is the number of samples trained before,
there is no state to save, and any split of a global batch over ranks is the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from megatron_slw.data.blend import BlendedWindows, parts_of
from megatron_slw.data.permutation import permutation_key, permute
from megatron_slw.data.windows import Windows

if TYPE_CHECKING:
    from megatron_slw.slw.plan import BatchStep


@dataclass(frozen=True)
class Blocks:
    """The rows one rank trains in one step; B rows of T labels, in the dataset's own integer dtype."""

    tokens_BT: np.ndarray
    labels_BT: np.ndarray
    """The tokens, one position on. Both are views of one (B, T + 1) array."""
    loss_mask_BT: np.ndarray | None = None
    """float32; None counts every label."""
    starts_BT: np.ndarray | None = None
    """bool, True where a token is the first of a document; None where documents are not tracked. Whether a row
    begins in the middle of a document does not matter: nothing of the row is before it."""


class TrainLoader:
    """Reads the training samples of any step, in any order of steps.

    Args:
        windows: the training split, of one corpus or of several.
        seed: chooses the order of every epoch.
        track_documents: fill `Blocks.starts_BT`.
    """

    def __init__(self, windows: Windows | BlendedWindows, seed: int, *, track_documents: bool = False) -> None:
        self.windows = windows
        self.seed = seed
        self.track_documents = track_documents

    def read(self, step: BatchStep, dp_rank: int, dp_size: int) -> Blocks:
        """Return this rank's share of a step: rows [dp_rank * B, (dp_rank + 1) * B) with B = rows / dp_size.

        A step shorter than the window takes the beginning of each sample.

        Raises:
            ValueError: the rows do not divide by dp_size, or there is no such rank.
        """
        if step.rows % dp_size or not 0 <= dp_rank < dp_size:
            raise ValueError(f"{step.rows} rows cannot be shared: rank {dp_rank} of {dp_size}")
        count = step.rows // dp_size
        first = step.samples_before + dp_rank * count
        return _gather(self.windows, first, count, step.seq_len, self._order, self.track_documents)

    def sample_windows(self, first: int, count: int, corpus: int = 0) -> np.ndarray:
        """Return the windows of the samples [first, first + count) of one corpus: int64 of shape (count,)."""
        return self._order(corpus, first, count)

    def _order(self, corpus: int, first: int, count: int) -> np.ndarray:
        size = len(parts_of(self.windows)[corpus])
        salt = f"train/{corpus}" if corpus else "train"  # corpora of one size must not go in step
        index = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, position = divmod(first + done, size)
            part = min(size - position, count - done)
            key = permutation_key(self.seed, epoch, salt)
            index[done : done + part] = permute(np.arange(position, position + part), size, key)
            done += part
        return index


class ValidLoader:
    """Reads the windows of a validation or test split in order and at full length, none of them twice.

    Of a blend it gives each corpus's share, so it ends with the first corpus that has no more windows.
    """

    def __init__(self, windows: Windows | BlendedWindows, *, track_documents: bool = False) -> None:
        self.windows = windows
        self.track_documents = track_documents

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, first: int, count: int) -> Blocks:
        """Return the windows [first, first + count).

        Raises:
            ValueError: they are not all in the split.
        """
        if not 0 <= first <= first + count <= len(self):
            raise ValueError(f"windows {first} to {first + count} are not in [0, {len(self)})")
        return _gather(self.windows, first, count, self.windows.length, _in_order, self.track_documents)


def _in_order(corpus: int, first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count)


def _gather(
    windows: Windows | BlendedWindows,
    first: int,
    count: int,
    length: int,
    order: Callable[[int, int, int], np.ndarray],
    track_documents: bool,
) -> Blocks:
    """The first `length` labels of the samples [first, first + count), and the tokens before them.

    order(corpus, first, count) says which windows the samples of one corpus are.
    """
    if isinstance(windows, Windows):
        index = order(0, first, count)
        return _blocks(windows.gather(index, length), windows.starts(index, length) if track_documents else None)
    corpus, number = windows.blend.assign(first, count)
    rows_BT = np.empty((count, length + 1), windows.dtype)
    starts_BT = np.zeros((count, length), bool) if track_documents else None
    for part_number, part in enumerate(windows.parts):
        rows = np.flatnonzero(corpus == part_number)
        if len(rows):
            index = order(part_number, int(number[rows[0]]), len(rows))
            rows_BT[rows] = part.gather(index, length)
            if starts_BT is not None:
                starts_BT[rows] = part.starts(index, length)
    return _blocks(rows_BT, starts_BT)


def _blocks(rows_BT: np.ndarray, starts_BT: np.ndarray | None) -> Blocks:
    return Blocks(rows_BT[:, :-1], rows_BT[:, 1:], starts_BT=starts_BT)
