"""Label by label: how often a run trains each label of each sample, read off the plan's slices."""

from __future__ import annotations

import numpy as np

from megatron_slw.slw.plan import Plan


def label_counts(plan: Plan, samples: int, dp_size: int = 1) -> np.ndarray:
    """Times each label is trained, shape (samples, N); every rank reads its own share of every step."""
    counts_SN = np.zeros((samples, plan.full_length), np.int64)
    for step in map(plan.at, range(plan.total_steps)):
        share = step.rows // dp_size
        trained = 0
        for rank in range(dp_size):
            slices = step.slices(rank * share, share)
            used = np.zeros((share, step.seq_len), np.int64)
            for row, column, sample, start, stop, first in zip(*slices, strict=True):
                used[row, column : column + stop - start] += 1
                counts_SN[sample, max(start, first) : stop] += 1
                trained += max(0, stop - max(start, first))
            assert used.max(initial=0) <= 1, "two slices share a place"
        assert trained == step.tokens, "the ledger's count is not what the slices train"
    return counts_SN
