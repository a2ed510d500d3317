"""Which samples a step trains, and their tokens: a pure function of the step and the seed.

Sample i of a run is window permute(i mod n) of epoch i // n, with an order of its own in each epoch. So the
position in the data is the number of samples trained before, there is no state to save, and any split of a
global batch over ranks is the same batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

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


class TrainLoader:
    """Reads the training samples of any step, in any order of steps.

    Args:
        windows: the training split.
        seed: chooses the order of every epoch.
    """

    def __init__(self, windows: Windows, seed: int) -> None:
        self.windows = windows
        self.seed = seed

    def read(self, step: BatchStep, dp_rank: int, dp_size: int) -> Blocks:
        """Return this rank's share of a step: rows [dp_rank * B, (dp_rank + 1) * B) with B = rows / dp_size.

        A step shorter than the window takes the beginning of each sample.

        Raises:
            ValueError: the rows do not divide by dp_size, or there is no such rank.
        """
        if step.rows % dp_size or not 0 <= dp_rank < dp_size:
            raise ValueError(f"{step.rows} rows cannot be shared: rank {dp_rank} of {dp_size}")
        count = step.rows // dp_size
        index = self.sample_windows(step.samples_before + dp_rank * count, count)
        return _blocks(self.windows.gather(index, step.seq_len))

    def sample_windows(self, first: int, count: int) -> np.ndarray:
        """Return the windows of the samples [first, first + count) of the run: int64 of shape (count,)."""
        size = len(self.windows)
        index = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, position = divmod(first + done, size)
            part = min(size - position, count - done)
            key = permutation_key(self.seed, epoch, "train")
            index[done : done + part] = permute(np.arange(position, position + part), size, key)
            done += part
        return index


class ValidLoader:
    """Reads the windows of a validation or test split in order and at full length."""

    def __init__(self, windows: Windows) -> None:
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def read(self, first: int, count: int) -> Blocks:
        """Return the windows [first, first + count).

        Raises:
            ValueError: they are not all in the split.
        """
        if not 0 <= first <= first + count <= len(self):
            raise ValueError(f"windows {first} to {first + count} are not in [0, {len(self)})")
        return _blocks(self.windows.gather(np.arange(first, first + count), self.windows.length))


def _blocks(rows_BT: np.ndarray) -> Blocks:
    return Blocks(rows_BT[:, :-1], rows_BT[:, 1:])
