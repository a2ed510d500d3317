"""Several corpora as one: which corpus each sample of a run comes from, in exact proportions.

With weights w that add up to 1, the samples before any sample i hold w * i of each corpus, up to less than one
sample. That such an order exists is a theorem (Tijdeman, "The chairman assignment problem", 1980), and serving
the corpus whose next sample is due first finds it (Steiner and Yeomans, "Level schedules for mixed-model,
just-in-time processes", 1993). Weights are exact fractions, so the order repeats after their common denominator:
one period is all that is kept, whatever the size of the data and the length of the run.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from megatron_slw.config.errors import ConfigError
from megatron_slw.config.schema import DataConfig
from megatron_slw.data.windows import SplitName, Windows, open_windows

BLEND_PERIOD = 100_000  # samples: weights of five digits after the point fit; the order is made in 0.2 s


class Blend:
    """The corpus of every sample, and its number within its corpus: a pure function of the weights.

    Args:
        weights: of the corpora, above 0, on any scale.

    Raises:
        ConfigError: reduced to whole numbers the weights add up to more than BLEND_PERIOD.
    """

    def __init__(self, weights: Sequence[Fraction]) -> None:
        if not weights or min(weights) <= 0:
            raise ValueError(f"a blend needs weights above 0, not {[str(weight) for weight in weights]}")
        self.shares = whole_shares(weights)
        self.period = sum(self.shares)
        if self.period > BLEND_PERIOD:
            raise ConfigError(
                f"data.path has weights in the proportion {':'.join(map(str, self.shares))[:80]}, which repeats after "
                f"{self.period:,} samples; at most {BLEND_PERIOD:,} are possible. Write them with fewer digits."
            )
        self._corpus = _order(self.shares)
        # A sample's number within its corpus is that within the period, plus a share for each period before.
        self._slots = [np.flatnonzero(self._corpus == corpus) for corpus in range(len(self.shares))]
        self._number = np.empty(self.period, np.int64)
        for slots in self._slots:
            self._number[slots] = np.arange(len(slots))
        self._share = np.array(self.shares, np.int64)

    def assign(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the corpus of the samples [first, first + count), and their numbers within it.

        Returns:
            Two integer arrays of shape (count,). Of each corpus the numbers are consecutive.
        """
        turn, slot = np.divmod(np.arange(first, first + count), self.period)
        corpus = self._corpus[slot]
        return corpus, turn * self._share[corpus] + self._number[slot]

    def position(self, corpus: int, number: int) -> int:
        """Return the sample that is number `number` of `corpus`: the inverse of `assign`."""
        turn, number = divmod(number, self.shares[corpus])
        return turn * self.period + int(self._slots[corpus][number])


@dataclass(frozen=True)
class BlendedWindows:
    """The windows of several corpora, of one split, and how they are blended."""

    parts: tuple[Windows, ...]
    blend: Blend

    @property
    def length(self) -> int:
        """N, the labels of a window."""
        return self.parts[0].length

    @property
    def dtype(self) -> np.dtype[np.integer]:
        """The smallest integers that hold the ids of every corpus."""
        return np.result_type(*[part.tokens.dtype for part in self.parts])

    def __len__(self) -> int:
        """Samples before a corpus would have to give a window for the second time."""
        return min(self.blend.position(corpus, len(part)) for corpus, part in enumerate(self.parts))


def open_samples(data: DataConfig, seq_length: int, name: SplitName) -> Windows | BlendedWindows:
    """Open the corpora of one split, each divided by data.split on its own.

    Raises:
        ConfigError: what `open_windows` refuses, or weights that cannot be blended.
    """
    if len(data.corpora) == 1 or (data.valid_path is not None and name == "valid"):
        return open_windows(data, seq_length, name)
    blend = Blend([corpus.weight for corpus in data.corpora])  # first: it costs less than opening
    parts = [open_windows(data, seq_length, name, corpus.prefix) for corpus in data.corpora]
    return BlendedWindows(tuple(parts), blend)


def parts_of(windows: Windows | BlendedWindows) -> tuple[Windows, ...]:
    """Return the windows of each corpus."""
    return windows.parts if isinstance(windows, BlendedWindows) else (windows,)


def whole_shares(weights: Sequence[Fraction]) -> tuple[int, ...]:
    """Return the smallest whole numbers in the proportion of the weights."""
    scale = math.lcm(*[weight.denominator for weight in weights])
    whole = [int(weight * scale) for weight in weights]
    divisor = math.gcd(*whole)
    return tuple(number // divisor for number in whole)


def _order(shares: Sequence[int]) -> np.ndarray:
    """One period: the corpus of each slot, int32 of shape (sum of shares,).

    Copy j of a corpus with share m of D may stand from slot floor(j D / m), before which it would be a whole sample
    early, to slot ceil((j + 1) D / m) - 1, after which it would be one late. Of the copies that may stand in a slot,
    the one whose last slot comes first takes it.
    """
    period = sum(shares)
    order = np.empty(period, np.int32)
    placed = [0] * len(shares)
    waiting = [(0, corpus) for corpus in range(len(shares))]  # by the first slot possible
    ready: list[tuple[int, int]] = []  # by the last
    for slot in range(period):
        while waiting and waiting[0][0] <= slot:
            corpus = heapq.heappop(waiting)[1]
            last = -(-(placed[corpus] + 1) * period // shares[corpus]) - 1
            heapq.heappush(ready, (last, corpus))
        last, corpus = heapq.heappop(ready)
        assert last >= slot, f"corpus {corpus} of shares {shares} comes too late in slot {slot}"
        order[slot] = corpus
        placed[corpus] += 1
        heapq.heappush(waiting, (placed[corpus] * period // shares[corpus], corpus))
    return order
