"""The moving average that every loss curve is drawn with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
SMOOTHED_FRACTION = 0.02


def smooth(values: Floats, counts: Floats | None = None, fraction: float = SMOOTHED_FRACTION) -> Floats:
    """Centred moving average over `fraction` of the run, skipping nan.

    It is narrower near the start, which would be flattened otherwise, and one-sided at the end, where a
    narrow one would show the noise of the last step as the result.

    Args:
        values: shape (n,), one value a step, or the mean of some steps.
        counts: shape (n,), how many steps each value is the mean of; None for one each.
        fraction: of n, in [0, 1].
    """
    count = len(values)
    index = np.arange(count)
    half = np.minimum(index, int(fraction * count / 2))
    known = np.isfinite(values)
    weights = np.where(known, 1.0 if counts is None else counts, 0.0)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0) * weights)))
    totals = np.concatenate(([0.0], np.cumsum(weights)))
    low, high = index - half, np.minimum(index + half + 1, count)
    inside = totals[high] - totals[low]
    return np.where(inside > 0, (sums[high] - sums[low]) / np.maximum(inside, 1), np.nan)
