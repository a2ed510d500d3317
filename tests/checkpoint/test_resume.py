"""A resume goes on as if nothing had happened: bit for bit on the same layout, the same state on any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_slw.checkpoint.format import complete_checkpoints, step_folder
from megatron_slw.testing import WorkerFailed, WorkerPool, tiny_config, write_tiny_dataset
from tests.checkpoint import jobs

TP2, PP2 = {"tensor": 2}, {"pipeline": 2}
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"world_size": 2},
    "tp2": {"world_size": 2, "parallel": TP2},
    "pp2": {"world_size": 2, "parallel": PP2},
    "tp2-pp2": {"world_size": 4, "parallel": TP2 | PP2},
    "zero1-dp2": {"world_size": 2, "zero_stage": 1},
    "zero2-dp2": {"world_size": 2, "zero_stage": 2},
    "zero3-dp2": {"world_size": 2, "zero_stage": 3},
    "pp2-dp2-zero1-bf16": {"world_size": 4, "parallel": PP2, "zero_stage": 1, "precision": "bf16"},
    "dp2-zero2-bf16": {"world_size": 2, "zero_stage": 2, "precision": "bf16"},
    "tp2-zero1-bf16": {"world_size": 2, "parallel": TP2, "zero_stage": 1, "precision": "bf16"},
    "zero3-dp2-bf16": {"world_size": 2, "zero_stage": 3, "precision": "bf16"},
    "pp4-uneven-bf16": {
        "world_size": 4, "parallel": {"pipeline": 4}, "zero_stage": 1, "precision": "bf16", "model__num_layers": 5,
    },  # fmt: skip
}
DROPOUT = {"model__hidden_dropout": 0.1, "model__attention_dropout": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path


def config_for(folder: Path, run: str, **changes: Any) -> Any:
    return tiny_config(folder, logging__directory=str(folder / run), **changes)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_layout_continues_bit_for_bit_with_dropout(pool: WorkerPool, folder: Path, layout: str) -> None:
    """Saved at step 4, in the middle of the warmup and on a change of length; step 12 is the end."""
    changes = LAYOUTS[layout] | DROPOUT
    config = config_for(folder, "run", **changes)
    straight = pool.run(jobs.run, config.world_size, (config, 9, (4,)))
    resumed = pool.run(jobs.run, config.world_size, (config, 9))
    for rank, (before, after) in enumerate(zip(straight, resumed, strict=True)):
        assert after["start"].step == 4, "the run was not resumed"
        for what in ("losses", "draws"):
            expected = {step: value for step, value in before[what].items() if step >= 4}
            assert after[what] == expected, f"rank {rank}: {what} differ"
        for step, tokens in after["tokens"].items():
            assert np.array_equal(tokens, before["tokens"][step]), f"rank {rank}: tokens of step {step} differ"
        differing = [k for k, v in before["state"].items() if not np.array_equal(v, after["state"][k])]
        assert not differing, f"rank {rank}: {differing[:3]} differ"


@pytest.mark.parametrize("layout", ["tp2", "pp2"])
def test_documents_continue_bit_for_bit(pool: WorkerPool, folder: Path, layout: str) -> None:
    resets = {"data__reset_position_ids": True, "data__reset_attention_mask": True}
    config = config_for(folder, "run", **LAYOUTS[layout], **DROPOUT, **resets)
    straight = pool.run(jobs.run, config.world_size, (config, 8, (4,)))
    resumed = pool.run(jobs.run, config.world_size, (config, 8))
    for before, after in zip(straight, resumed, strict=True):
        assert after["losses"] == {step: loss for step, loss in before["losses"].items() if step >= 4}
        assert not [k for k, v in before["state"].items() if not np.array_equal(v, after["state"][k])]


@pytest.mark.parametrize("target", ["one", "dp2", "tp2", "pp2", "tp2-pp2", "zero1-dp2", "zero3-dp2"])
@pytest.mark.parametrize("source", ["one", "tp2-pp2", "zero3-dp2"])
def test_other_layout_restores_the_same_state(pool: WorkerPool, folder: Path, source: str, target: str) -> None:
    first = config_for(folder, "run", **LAYOUTS[source])
    straight = pool.run(jobs.run, first.world_size, (first, 8, (4,)))
    saved = jobs.read_logical(step_folder(folder / "run" / "checkpoints", 4))
    second = config_for(folder, "run", **LAYOUTS[target])
    resumed = pool.run(jobs.run, second.world_size, (second, 8))
    for after in resumed:
        assert after["start"].step == 4, "the run was not resumed"
        assert jobs.unlike(saved, after["restored"]) == [], "not restored bit for bit"
    for step, loss in resumed[0]["losses"].items():
        assert loss == pytest.approx(straight[0]["losses"][step], rel=1e-6), f"step {step}"


def test_fp16_resumes_with_its_loss_scale(pool: WorkerPool, folder: Path) -> None:
    fp16 = {"fp16": {"enabled": True, "initial_scale_power": 20, "loss_scale_window": 2, "hysteresis": 1}}
    config = config_for(folder, "run", world_size=2, zero_stage=1, precision="fp16")
    config = config.model_copy(update={"deepspeed": config.deepspeed | fp16})
    straight = pool.run(jobs.run_fp16, 2, (config, 10, (5,)))
    resumed = pool.run(jobs.run_fp16, 2, (config, 10))
    for before, after in zip(straight, resumed, strict=True):
        assert after["losses"] == {s: v for s, v in before["losses"].items() if s >= 5}, "losses differ"


def test_sgd_momentum_is_part_of_the_state(pool: WorkerPool, folder: Path) -> None:
    sgd = {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
    config = config_for(folder, "run", optimizer=sgd)
    straight = pool.run(jobs.run, 1, (config, 8, (4,)))
    resumed = pool.run(jobs.run, 1, (config, 8))
    assert resumed[0]["losses"] == {s: v for s, v in straight[0]["losses"].items() if s >= 4}, "losses differ"


def test_a_rank_that_cannot_write_fails_the_save_everywhere(pool: WorkerPool, folder: Path) -> None:
    config = config_for(folder, "run", world_size=2, zero_stage=1)
    said = pool.run(jobs.save_fails_on_one_rank, 2, (config, 1))
    assert "No space left on device" in said[1], said
    assert "(rank 1)" in said[0] and said[0] == said[1], said
    assert complete_checkpoints(folder / "run" / "checkpoints") == [], "a half-written checkpoint counts as one"
    assert not list((folder / "run" / "checkpoints").iterdir()), "the disk stays full of it"


@pytest.mark.parametrize("change", [{"num_attention_heads": 2}, {"activation": "gelu"}, {"layernorm_epsilon": 1e-6}])
def test_another_model_of_the_same_shapes_is_refused(pool: WorkerPool, folder: Path, change: dict[str, Any]) -> None:
    config = config_for(folder, "run")
    pool.run(jobs.run, 1, (config, 2, (2,)))
    other = config_for(folder, "run", model=change)
    with pytest.raises(WorkerFailed, match=rf"its model\.{next(iter(change))} is"):
        pool.run(jobs.run, 1, (other, 3))
