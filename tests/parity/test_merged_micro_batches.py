"""Merged micro-batches train the same model as unmerged ones, on every kind of engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.slw.batching import micro_batching
from megatron_slw.slw.compile import compile_plan
from megatron_slw.testing import WorkerPool
from tests.parity.test_layouts import LAYOUTS, TOLERANCE, run

MERGED = ("dp2", "pp2", "tp2-pp2", "zero1", "zero2", "zero3", "sp-pp2-zero1")


@pytest.mark.parametrize("layout", MERGED)
def test_merging_changes_nothing(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    changes: dict[str, Any] = LAYOUTS[layout] | {"train_batch_size": 16, "micro_batch_size": 1}
    merged, weights = run(pool, tmp_path, "sgd", **changes, training__micro_batch_tokens=32)
    plain, plain_weights = run(pool, tmp_path, "sgd", **changes, training__micro_batch_tokens=1)
    assert np.allclose([*merged[0], *merged[1]], [*plain[0], *plain[1]], rtol=TOLERANCE), "losses or norms differ"
    for name, value in weights.items():
        deviation = np.abs(value - plain_weights[name]).max() / np.abs(value).max()
        assert deviation < TOLERANCE, f"{name} differs by {deviation}"


def test_the_run_really_merges(tmp_path: Path) -> None:
    """Else the test above compares a run with itself."""
    from megatron_slw.testing import tiny_config

    config = tiny_config(tmp_path, train_batch_size=16, micro_batch_size=1, training__micro_batch_tokens=32)
    counts = {micro_batching(config, step.seq_len).parts for step in map(compile_plan(config).at, range(12))}
    assert counts == {4, 8, 16}, counts
