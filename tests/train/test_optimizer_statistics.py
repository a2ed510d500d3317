"""L1 norm and largest element of sqrt(v): every element of the model once, whoever holds it how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_slw.testing import WorkerPool, single_process, tiny_config, write_tiny_dataset
from megatron_slw.train.optimizer_statistics import _batches, _total_and_max, variance_sqrt
from tests.parity import runs
from tests.train import statistics_jobs
from tests.train.engine_jobs import make_engine

TP2, PP2, SP = {"tensor": 2}, {"pipeline": 2}, {"tensor": 2, "sequence_parallel": True}
THREE = {"world_size": 3, "train_batch_size": 12}  # nothing divides by three: ZeRO pads
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "dp2": {"world_size": 2},
    "tp2": {"world_size": 2, "parallel": TP2},
    "pp2": {"world_size": 2, "parallel": PP2},
    "tp2-pp2": {"world_size": 4, "parallel": TP2 | PP2},
    "zero1-dp3": THREE | {"zero_stage": 1},
    "zero2-dp3": THREE | {"zero_stage": 2},
    "zero3-dp3": THREE | {"zero_stage": 3},
    "sp-pp2-zero1": {"world_size": 4, "parallel": SP | PP2, "zero_stage": 1},
    "tp2-dp2-zero3": {"world_size": 4, "parallel": TP2, "zero_stage": 3},
    "zero1-dp3-bf16": THREE | {"zero_stage": 1, "precision": "bf16"},
    "pp2-dp2-zero1-bf16": {"world_size": 4, "parallel": PP2, "zero_stage": 1, "precision": "bf16"},
    "zero2-dp2-bf16": {"world_size": 2, "zero_stage": 2, "precision": "bf16"},
    "zero3-dp2-bf16": {"world_size": 2, "zero_stage": 3, "precision": "bf16"},
    "zero1-fp16": {"world_size": 2, "zero_stage": 1, "precision": "fp16"},
}
STEPS = 4


@pytest.fixture(scope="module")
def alone() -> dict[int, Any]:
    """The statistics of one process, by batch size."""
    return {}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_element_counts_once(pool: WorkerPool, tmp_path: Path, alone: dict[int, Any], layout: str) -> None:
    """Against the logical tensors put together from all ranks' blocks, and against a run of one process.

    Whatever ZeRO's partitions hold beside the parameters is set to a million first.
    """
    config = tiny_config(tmp_path, optimizer__eps=1e-5, **LAYOUTS[layout])
    job = statistics_jobs.measured_and_whole
    if config.precision == "fp16":
        job = statistics_jobs.measured_and_whole_fp16
    results = pool.run(job, config.world_size, (config, STEPS))
    whole = runs.assemble([pieces for _, pieces in results])
    roots = np.concatenate([np.sqrt(tensor.astype(np.float64)).ravel() for tensor in whole.values()])
    for found, _ in results:
        assert found.l1 == pytest.approx(roots.sum(), rel=1e-6)
        assert found.abs_max == pytest.approx(roots.max(), rel=1e-6)
    if config.precision == "fp32":
        rows = config.train_batch_size
        if rows not in alone:
            reference = tiny_config(tmp_path, optimizer__eps=1e-5, train_batch_size=rows)
            alone[rows] = pool.run(job, 1, (reference, STEPS))[0][0]
        assert tuple(results[0][0]) == pytest.approx(tuple(alone[rows]), rel=1e-4)


def test_sgd_has_no_second_moment(tmp_path: Path) -> None:
    with single_process():
        assert variance_sqrt(make_engine(tiny_config(tmp_path, optimizer={"type": "SGD", "lr": 0.1}))) is None


def test_long_tensors_are_cut_and_none_is_lost() -> None:
    fragments = [torch.rand(n) for n in (1, 7, 100, 0, 3, 64, 65)]
    for limit in (1, 7, 64, 1000):
        batches = list(_batches(fragments, limit))
        assert torch.equal(torch.cat([piece for batch in batches for piece in batch]), torch.cat(fragments))
        assert max(sum(piece.numel() for piece in batch) for batch in batches) <= limit
        total, largest = _total_and_max(batches, torch.device("cpu")).tolist()
        everything = torch.cat(fragments).double()
        assert total == pytest.approx(float(everything.sqrt().sum()), rel=1e-6)
        assert largest == float(everything.max())


def test_a_rank_without_an_element_takes_part() -> None:
    assert _total_and_max([], torch.device("cpu")).tolist() == [0.0, 0.0]


def test_a_step_that_fp16_skipped_has_no_gradient_norm_but_a_loss(pool: WorkerPool, tmp_path: Path) -> None:
    """A loss scale of 2**40 overflows until it has been halved often enough."""
    write_tiny_dataset(tmp_path / "data")
    config = tiny_config(tmp_path, zero_stage=1, precision="fp16", training__train_steps=40, curriculum=None)
    fp16 = {"fp16": {"enabled": True, "initial_scale_power": 40, "hysteresis": 1}}
    config = config.model_copy(update={"deepspeed": config.deepspeed | fp16})
    measured, updates = pool.run(statistics_jobs.measured_by_a_run_fp16, 1, (config,))[0]
    assert 5 < updates < 35, "nothing was skipped, or all"
    assert measured.steps == len(measured.losses) == 40
    assert len(measured.grad_norms) == updates
