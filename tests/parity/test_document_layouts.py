"""Positions and attention that begin anew with each document: every layout trains like one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_slw.testing import WorkerPool
from tests.parity.test_layouts import LAYOUTS, PP2, TOLERANCE, compare, run

BOTH = {"data__reset_position_ids": True, "data__reset_attention_mask": True}
DOCUMENTS: dict[str, dict[str, Any]] = {
    **{name: LAYOUTS[name] | BOTH for name in ("dp2", "tp2", "pp2", "sp", "zero1", "zero3", "tp2-pp2", "sp-pp2-zero1")},
    "pp3": {"world_size": 3, "parallel": {"pipeline": 3}, "model__num_layers": 3} | BOTH,  # a stage that reads nothing
    "pp2-recompute": {"world_size": 2, "parallel": PP2, "training__activation_checkpointing": True} | BOTH,
    "zero3-recompute": {"world_size": 2, "zero_stage": 3, "training__activation_checkpointing": True} | BOTH,
    "sp-positions": LAYOUTS["sp"] | {"data__reset_position_ids": True},
    "pp2-positions": LAYOUTS["pp2"] | {"data__reset_position_ids": True},
    "pp2-mask": LAYOUTS["pp2"] | {"data__reset_attention_mask": True},
}


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """One-process results by their settings, so that each is trained once."""
    return {}


@pytest.mark.parametrize("layout", DOCUMENTS)
def test_layout_trains_like_one_process(
    pool: WorkerPool, tmp_path: Path, references: dict[str, Any], layout: str
) -> None:
    # merged while short, so that the number of rows that a stage receives changes too
    changes = {"training__micro_batch_tokens": 64} | DOCUMENTS[layout]
    assert compare(pool, tmp_path, references, "sgd", **changes) < TOLERANCE


def test_each_setting_changes_the_run(pool: WorkerPool, tmp_path: Path) -> None:
    """Else the layouts above might agree on having ignored both."""
    settings: list[dict[str, Any]] = [{}, *({name: value} for name, value in BOTH.items()), BOTH]
    losses = [run(pool, tmp_path, "sgd", **changes)[0][0][1] for changes in settings]
    assert len({round(loss, 5) for loss in losses}) == len(settings), losses
