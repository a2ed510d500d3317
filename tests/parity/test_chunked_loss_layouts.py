"""The loss a chunk of rows at a time: every layout trains like one process with all logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.testing import WorkerPool, tiny_config
from tests.parity import runs
from tests.parity.test_document_layouts import BOTH
from tests.parity.test_layouts import LAYOUTS, OPTIMIZERS, TOLERANCE, TP2

CHUNKED: dict[str, Any] = {"ops": {"cross_entropy": "chunked"}}
CASES: dict[str, dict[str, Any]] = {
    "one": {},
    **LAYOUTS,
    # 60 ids leave the second rank nothing but padding
    "tp2-rank-of-padding": {"world_size": 2, "parallel": TP2, "model__vocab_size": 60},
    "documents": BOTH,
    "zero3-documents": LAYOUTS["zero3"] | BOTH,
    "pp2-documents": LAYOUTS["pp2"] | BOTH,
    "zero3-recompute": LAYOUTS["zero3"] | {"training__activation_checkpointing": True},
}


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """One-process results with all logits, by their settings."""
    return {}


def run(pool: WorkerPool, folder: Path, job: Any, **changes: Any) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Losses, norms and evaluation of rank 0, and the assembled final weights."""
    settings = OPTIMIZERS["sgd"]
    config = tiny_config(folder, optimizer=settings, **changes)
    results = pool.run(job, config.world_size, (config, settings["lr"]))
    losses, norms, valid, _ = results[0]
    return np.array([*losses, *norms, valid]), runs.assemble([r[3] for r in results])


@pytest.mark.parametrize("layout", CASES)
def test_chunks_train_like_all_logits(
    pool: WorkerPool, tmp_path: Path, references: dict[str, Any], layout: str
) -> None:
    changes = CASES[layout]
    alone = {name: value for name, value in changes.items() if name.startswith(("model__", "data__"))}
    if str(alone) not in references:
        references[str(alone)] = run(pool, tmp_path, runs.train, **alone, ops={"cross_entropy": "logits"})
    scalars, weights = references[str(alone)]
    ours, our_weights = run(pool, tmp_path, runs.train_in_chunks, **changes, **CHUNKED)
    assert (np.abs(ours - scalars) / scalars).max() < TOLERANCE
    for name, value in weights.items():
        assert np.abs(our_weights[name] - value).max() / np.abs(value).max() < TOLERANCE, name
