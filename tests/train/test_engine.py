"""What the engine refuses to train on, evaluation apart from training, and golden losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.slw.compile import compile_plan
from megatron_slw.testing import WorkerPool, single_process, tiny_config
from tests.parity.runs import SyntheticBlocks
from tests.train import engine_jobs

GOLDEN = Path(__file__).parents[1] / "golden" / "losses.json"
PP2 = {"pipeline": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"world_size": 2},
    "pp2": {"world_size": 2, "parallel": PP2},
    "zero1": {"world_size": 2, "zero_stage": 1},
    "zero3": {"world_size": 2, "zero_stage": 3},
    "pp2-zero1-bf16": {"world_size": 2, "parallel": PP2, "zero_stage": 1, "precision": "bf16"},
    "zero1-bf16": {"world_size": 2, "zero_stage": 1, "precision": "bf16"},
    "zero2-bf16": {"world_size": 2, "zero_stage": 2, "precision": "bf16"},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_weight_stops_before_the_update(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    config = tiny_config(tmp_path, **LAYOUTS[layout])
    for said, changed in pool.run(engine_jobs.poisoned_step, config.world_size, (config, "forward")):
        samples = "samples 24 to 31" if layout == "one" or "pp2" in layout else "rank 1, samples 28 to 31"
        assert "step 4: the loss is not finite on rank" in said and samples in said, said
        assert not changed, "weights were updated"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_nan_gradient_stops_before_the_update(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    """The loss is finite: only the backward pass of one parameter on one rank gives a NaN."""
    config = tiny_config(tmp_path, **LAYOUTS[layout])
    for said, changed in pool.run(engine_jobs.poisoned_step, config.world_size, (config, "backward")):
        assert "step 4: the gradient norm is not finite (samples 24 to 31" in said, said
        assert not changed, "weights were updated"


@pytest.mark.parametrize("layout", ["one", "dp2", "pp2"])
def test_evaluation_does_not_touch_training(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    dropout = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}
    config = tiny_config(tmp_path, **LAYOUTS[layout], **dropout)
    with_evaluation = pool.run(engine_jobs.losses, config.world_size, (config, True))
    without = pool.run(engine_jobs.losses, config.world_size, (config, False))
    assert with_evaluation == without, "an evaluation changes the steps after it"


@pytest.mark.parametrize("layout", ["one", "dp2", "pp2", "zero3"])
def test_validation_is_the_mean_over_its_windows(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    """Eleven windows in batches of two over the ranks: the last ones are filled up and must not count."""
    config = tiny_config(tmp_path, **LAYOUTS[layout], evaluation__samples=11)
    exact = engine_jobs.mean_by_hand(config, windows=11)
    for found in pool.run(engine_jobs.validation, config.world_size, (config, 11)):
        assert found == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("layout", ["one", "pp2", "zero3"])
def test_validation_knows_the_documents(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    resets = {"data__reset_position_ids": True, "data__reset_attention_mask": True}
    config = tiny_config(tmp_path, **LAYOUTS[layout], **resets, evaluation__samples=11)
    exact = engine_jobs.mean_document_by_document(config, windows=11)
    assert abs(exact - engine_jobs.mean_by_hand(config, windows=11)) > 1e-4 * exact, "documents make no difference"
    for found in pool.run(engine_jobs.validation, config.world_size, (config, 11)):
        assert found == pytest.approx(exact, rel=1e-6)


def test_blocks_without_documents_are_refused_where_these_matter(tmp_path: Path) -> None:
    """A reader that forgets them would otherwise train on plainly causal attention, and nobody would see."""
    config = tiny_config(tmp_path, data__reset_attention_mask=True, training__train_steps=1)
    blocks = SyntheticBlocks(*np.zeros((2, 8, 8), np.uint16))
    with single_process(), pytest.raises(ValueError, match="but the blocks have no starts_BT"):
        engine_jobs.make_engine(config).train_step(blocks, compile_plan(config).at(0), 1e-3)


@pytest.mark.parametrize("layout", ["one", "dp2", "pp2"])
def test_masked_labels_are_divided_by_the_global_count(pool: WorkerPool, tmp_path: Path, layout: str) -> None:
    """Masks that differ between micro-batches and ranks give the mean over all labels that count."""
    config = tiny_config(tmp_path, **LAYOUTS[layout])
    exact = engine_jobs.masked_mean_by_hand(config)
    for found in pool.run(engine_jobs.masked_loss, config.world_size, (config,)):
        assert found == pytest.approx(exact, rel=1e-6)


def test_ranks_of_which_some_ran_zero3_before_train_zero2_alike(pool: WorkerPool, tmp_path: Path) -> None:
    """ZeRO 3 leaves another F.linear behind; ZeRO 2 then added up the gradients of different parameters."""
    pool.run(engine_jobs.losses, 2, (tiny_config(tmp_path, **LAYOUTS["zero3"]), False))
    three = tiny_config(tmp_path, world_size=3, zero_stage=2, train_batch_size=12)
    alone = pool.run(engine_jobs.losses, 1, (tiny_config(tmp_path, train_batch_size=12), False))[0]
    for found in pool.run(engine_jobs.losses, 3, (three, False)):
        assert found == pytest.approx(alone, rel=1e-5)


def test_golden_losses(pool: WorkerPool, tmp_path: Path) -> None:
    """Twenty steps of a tiny run. If a change of these figures is meant, its commit says why and rewrites the file."""
    config = tiny_config(tmp_path, training__train_steps=20)
    found = pool.run(engine_jobs.losses, 1, (config, False))[0]
    golden = json.loads(GOLDEN.read_text())
    assert len(found) == len(golden["losses"]) == 20, "another number of steps"
    assert np.allclose(found, golden["losses"], rtol=golden["relative_tolerance"]), found
