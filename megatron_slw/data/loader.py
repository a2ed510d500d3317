"""Which samples a step trains, and their tokens: a pure function of the step and the seed.

Sample i of a corpus of n windows is window permute(i mod n) of epoch i // n, with an order of its own in each
epoch; a blend says which corpus's turn it is. So the position in the data is the number of samples trained before,
there is no state to save, and any split of a global batch over ranks is the same batch. Which samples, and which
parts of them, a row holds is the plan's matter (`BatchStep.slices`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from megatron_slw.data.blend import BlendedWindows, parts_of
from megatron_slw.data.permutation import permutation_key, permute
from megatron_slw.data.rows import Blocks, sliced_rows, whole_rows
from megatron_slw.data.windows import Windows

if TYPE_CHECKING:
    from megatron_slw.slw.plan import BatchStep


Order = Callable[[int, int, int], np.ndarray]
"""order(corpus, first, count): the windows of consecutive samples of one corpus."""


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

        Labels that are context only, and rows that fill up a last step, are masked. A mask is there on every rank if
        on one.

        Raises:
            ValueError: the rows do not divide by dp_size, or there is no such rank.
        """
        if step.rows % dp_size or not 0 <= dp_rank < dp_size:
            raise ValueError(f"{step.rows} rows cannot be shared: rank {dp_rank} of {dp_size}")
        count = step.rows // dp_size
        slices = step.slices(dp_rank * count, count)
        corpus, window = _locate_any(self.windows, slices.sample, self._order)
        masked = step.tokens < step.rows * step.seq_len
        one_each = len(slices.row) == count and not slices.start.any() and bool((slices.stop == step.seq_len).all())
        if not one_each:
            shape = count, step.seq_len
            blocks = sliced_rows(self.windows, corpus, window, slices, shape, self.track_documents)
            return blocks if masked else replace(blocks, loss_mask_BT=None)
        blocks = whole_rows(self.windows, corpus, window, step.seq_len, self.track_documents)
        if not masked:
            return blocks
        mask_BT = (np.arange(step.seq_len) >= slices.first_trained[:, None]).astype(np.float32)
        return replace(blocks, loss_mask_BT=mask_BT)

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
        corpus, window = _locate(self.windows, first, count, _in_order)
        return whole_rows(self.windows, corpus, window, self.windows.length, self.track_documents)


def _in_order(corpus: int, first: int, count: int) -> np.ndarray:
    return np.arange(first, first + count)


def _locate(windows: Windows | BlendedWindows, first: int, count: int, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """Return the corpus and the window of each of the samples [first, first + count)."""
    if isinstance(windows, Windows):
        return np.zeros(count, np.int64), order(0, first, count)
    corpus, number = windows.blend.assign(first, count)
    window = np.empty(count, np.int64)
    for part in range(len(windows.parts)):
        rows = np.flatnonzero(corpus == part)
        if len(rows):
            window[rows] = order(part, int(number[rows[0]]), len(rows))
    return corpus, window


def _locate_any(windows: Windows | BlendedWindows, samples: np.ndarray, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """The same of any samples; they come in few stretches of consecutive ones, and mostly in one."""
    if len(samples) and (np.diff(samples) == 1).all():
        return _locate(windows, int(samples[0]), len(samples), order)
    different, back = np.unique(samples, return_inverse=True)
    stretches = np.split(different, np.flatnonzero(np.diff(different) != 1) + 1) if len(different) else []
    found = [_locate(windows, int(stretch[0]), len(stretch), order) for stretch in stretches]
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    corpus, window = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return corpus[back], window[back]
